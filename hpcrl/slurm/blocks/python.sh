[ -x "$environment/bin/python3" ] && PATH=$(cd "$environment" && pwd)/bin:$PATH
