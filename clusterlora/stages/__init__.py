"""The steps of a study and nothing else, each one call on (study, stores): prepare, cluster, train, evaluate, judge, compare, register.

Prefect tasks and the command line call the same functions. Every step can be repeated: what is already in the stores is not done again.
"""
