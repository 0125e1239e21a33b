"""A preparation program whose URI says what happens."""

import json
import sys
import time

uri = sys.argv[sys.argv.index("--uri") + 1]
kind, _, argument = uri.removeprefix("file:///").partition("/")
print("a library's chatter", flush=True)
print(json.dumps({"stage": "reading", "fraction": 0.5}), flush=True)
if kind == "dir":
    print(json.dumps({"model_dir": "/" + argument}))
elif kind == "arguments":
    print(json.dumps({"model_dir": " ".join(sys.argv[1:])}))
elif kind == "refuse":
    print(json.dumps({"error": "no such file; name one that exists"}))
    sys.exit(2)
elif kind == "crash":
    sys.exit("Traceback\nBoomError: out of luck")
elif kind == "sleep":
    time.sleep(600)
