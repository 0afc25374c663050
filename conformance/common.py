"""What the scripts beside this one share."""
import signal, subprocess, sys, time


class Failed(Exception):
    pass


def ended(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


# Who is told to end stops first what was started: `finally` is passed through.
signal.signal(signal.SIGTERM, ended)


def sh(*command, ok=True, timeout=60, **kw):
    p = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **kw)
    if ok and p.returncode: raise Failed(f'{" ".join(command)}: exit {p.returncode}: {p.stderr[-600:]}')
    return p.stdout


def until(what, check, seconds=60, every=.2):
    end = time.time() + seconds
    last = None
    while True:
        try:
            last = check()
            if last: return last
        except Exception as e: last = e
        if time.time() > end: raise Failed(f'{what}: not within {seconds} s (last: {last!r})')
        time.sleep(every)


def open_(path):
    try: return open(path).read()
    except OSError: return ''
