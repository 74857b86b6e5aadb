"""The steps of a study and nothing else, each one call on (study, stores): prepare, cluster, train, evaluate, judge, compare, register.

Prefect tasks and the command line call the same functions. Every step is idempotent: work whose results are stored is skipped.
"""
