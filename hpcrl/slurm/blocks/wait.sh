# Once warned, ask the ranks to finish the update, save and leave, until they have.
while kill -0 "$step" 2>/dev/null; do
    if [ -z "$warned" ]; then
        wait "$step"
    else
        sleep 1
        listening && kill -USR1 "$step" 2>/dev/null
    fi
done
wait "$step"
status=$?
