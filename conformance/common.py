"""What the scripts beside this one share."""
import glob, os, shutil, signal, subprocess, sys, time


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


class Postgres:
    """A database server of its own, as durable as it is by default, reached by a socket in its directory."""
    def __init__(self, dir):
        self.bin, self.dir, self.drop = sorted(glob.glob('/usr/lib/postgresql/*/bin'))[-1], dir, []
        os.makedirs(dir)
        if os.getuid() == 0:
            shutil.chown(dir, 'postgres'); self.drop = ['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups']
        sh(*self.drop, self.bin + '/initdb', '-D', dir + '/data', '-U', 'allod', '-A', 'trust', '--no-instructions', cwd='/')
        with open(dir + '.log', 'w') as log:
            self.p = subprocess.Popen([*self.drop, self.bin + '/postgres', '-D', dir + '/data', '-c', 'listen_addresses=', '-k', dir, '-c', 'shared_buffers=256MB'],
                                      stdout=log, stderr=log, cwd='/')
        try: until('PostgreSQL answers', lambda: subprocess.run([self.bin + '/pg_isready', '-q', '-h', dir, '-U', 'allod']).returncode == 0, 30)
        except BaseException: self.stop(); raise
        self.url = 'postgresql://allod@/postgres?host=' + dir.replace('/', '%2F')

    def stop(self):
        """Fast: who is connected is sent away."""
        self.p.send_signal(signal.SIGINT); self.p.wait(60)
