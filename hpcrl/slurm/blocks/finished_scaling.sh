if [ "$status" -eq 0 ]; then
    exit 0
fi
