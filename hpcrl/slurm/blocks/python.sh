if [ -x "$environment/bin/python3" ]; then
    PATH=$(cd "$environment" && pwd)/bin:$PATH
elif [ "$environment" != .venv ]; then
    say "$environment holds no bin/python3"
    exit 2
fi
