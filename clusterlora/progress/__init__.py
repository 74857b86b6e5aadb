"""How far a study is and what it took: phases and what is expected of them, seconds, training logs, outcomes of attempts."""
