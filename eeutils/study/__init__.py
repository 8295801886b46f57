"""The study behind the scoreboard: every method and baseline over tasks and seeds, read from runs into small tables.

`make study` drives it through the Snakefile. By hand, after `train` for each method and seed:

    python -m eeutils.study plan PROFILE BACKBONE --tasks movie mrpc --seeds 0 1 2
    python -m eeutils.study train PROFILE TASK BACKBONE SEED METHOD
    python -m eeutils.study search PROFILE TASK BACKBONE SEED METHOD
    python -m eeutils.study time PROFILE TASK BACKBONE SEED FILE
    python -m eeutils.study tables PROFILE BACKBONE FOLDER --tasks movie mrpc --seeds 0 1 2 --times FILE ...
    python -m eeutils.study readme
    python -m eeutils.study explorer PROFILE TASK BACKBONE SEED

`entries` says what is run, `plan` what that will cost, `tables` reads the runs into tables, and the others read these
and nothing else: `page` is what the scoreboard shows of them, `sentences` says it in words, `headline` puts a short
table into README. `explored` writes the evidence of the explorer.
"""
