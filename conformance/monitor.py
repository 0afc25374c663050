"""Upstream's compliance monitor, unmodified, on a PostgreSQL of its own."""
import os, shutil, socket, subprocess, sys, urllib.request

from common import Postgres, until

# What runs inside upstream's interpreter: its own start, on a port of ours.
START = r'''
import logging, os, sys
sys.path.insert(0, os.getcwd())
import monitor, uvicorn
from markdown import markdown
monitor.env.filters.update(pick=monitor.pick_filter, summary=monitor.summary_filter, verdict_check=monitor.verdict_check_filter,
    markdown=markdown, validity_symbol=monitor.ASTERISK_LOOKUP.get, short_isodate=monitor.short_isodate_filter)
monitor.reload_static_config(do_ensure_schema=True)
uvicorn.run(monitor.app, host='127.0.0.1', port=int(sys.argv[1]), log_level='warning')
'''


def free():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


def interpreter(root, work):
    """A venv with upstream's pinned requirements."""
    venv = f'{work}/monitor-venv'
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    subprocess.run([f'{venv}/bin/pip', 'install', '-q', '--disable-pip-version-check', '-r', f'{root}/compliance-monitor/requirements.txt'], check=True)
    return f'{venv}/bin/python'


class Monitor:
    """`root`: upstream's checkout. `bootstrap`: text of its accounts."""
    def __init__(self, root, python, work, bootstrap):
        self.procs = []
        os.chmod(work, 0o711)
        place, http = f'{work}/upstream', free()
        shutil.copytree(f'{root}/compliance-monitor', f'{place}/compliance-monitor'); shutil.copytree(f'{root}/Tests', f'{place}/Tests')
        with open(f'{place}/compliance-monitor/bootstrap.yaml', 'w') as f: f.write(bootstrap)
        self.log, self.database = open(f'{work}/monitor.log', 'w'), Postgres(f'{work}/pg')
        env = {**os.environ, 'SCM_DB_HOST': self.database.dir, 'SCM_DB_PORT': '5432', 'SCM_DB_USER': 'allod', 'PGDATABASE': 'postgres', 'PGTZ': 'UTC', 'TZ': 'UTC'}
        try:
            self.procs.append(subprocess.Popen([python, '-c', START, str(http)], cwd=f'{place}/compliance-monitor', env=env, stdout=self.log, stderr=self.log))
            self.url = f'http://127.0.0.1:{http}'
            until('the monitor', lambda: self.get('/status?subject=x'), 60)
        except BaseException: self.stop(); raise

    def get(self, path):
        return urllib.request.urlopen(urllib.request.Request(self.url + path, headers={'accept': 'application/json'}), timeout=10).read()

    def told(self):
        self.log.flush()
        return open(self.log.name).read()[-1500:]

    def stop(self):
        for p in self.procs:
            p.terminate()
            try: p.wait(20)
            except subprocess.TimeoutExpired: p.kill(); p.wait()
        self.database.stop()
        self.log.close()
