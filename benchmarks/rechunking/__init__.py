"""What `benchmarks/rechunk.py` is made of.

`rows` says what is compared, `inputs` makes the data, `contenders` holds one program per contender,
`measure` runs them as whole processes, `report` does the arithmetic and the tables. Only programs that run as
processes of their own import numpy: a process's peak memory begins with that of the one that started it.
"""
