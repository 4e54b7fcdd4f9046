# Slurm's warnings: USR1 ahead of the time limit, TERM when the end has come. They are answered further down.
warned=
trap 'warned=limit' USR1
trap 'warned=${warned:-end}' TERM
