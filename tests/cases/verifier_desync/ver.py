import os
import subprocess
import sys
import time


def noisy(s, r):
    print("DEBUG grading")
    return {"accuracy": 1.0, "format": 1.0}


def closer(s, r):
    os.closerange(3, 64)
    return {"accuracy": 1.0}


def escape(s, r):
    subprocess.Popen(["setsid", "sleep", "97"])
    return {"accuracy": 1.0}


def child(s, r):
    subprocess.Popen(["sleep", "98"])
    return {"accuracy": 1.0}


def forkbomb(s, r):
    for _i in range(40):
        if os.fork() == 0:
            time.sleep(96)
            os._exit(0)
    return {"accuracy": 1.0}


def forkreturn(s, r):
    os.fork()
    return {"accuracy": float(os.getpid() % 2)}


def inject(s, r):
    import json
    import struct

    fd = int(sys.argv[1])
    b = json.dumps({"value": {"accuracy": 99.0}}).encode()
    os.write(fd, struct.pack("!i", len(b)) + b)
    return {"accuracy": 0.0}


def envleak(s, r):
    return {"accuracy": float("JUDGE_KEY" in os.environ)}


def memory(s, r):
    return {"accuracy": float(len(bytearray(8 << 30)))}


def bigreply(s, r):
    return {"x" * (1 << 20) + str(i): 1.0 for i in range(300)}


def exit0(s, r):
    sys.exit(0)


def sigterm(s, r):
    os.kill(os.getppid(), 0)
    return {"accuracy": 1.0}


def noalarm(s, r):
    import signal

    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(30)
    return {"accuracy": 1.0}
