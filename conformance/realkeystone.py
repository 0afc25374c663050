"""A real Keystone of 2026.1 from PyPI on SQLite, for keystone_sidebyside.py and bench/identity.py."""
import os, shutil, socket, sqlite3, subprocess, sys

from common import Failed, open_, sh, until
from identityonly import Identity

# Upper bounds as in OpenStack's constraints of 2026.1: oslo.policy 6 has no enforce_scope, setuptools 82 no pkg_resources.
PACKAGES = ['keystone>=29,<30', 'oslo.policy<6', 'setuptools<81', 'pyuwsgi']
FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'fixtures')
VENV = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), '.venv-keystone')
PASSWORD = 'adminpw'


def install(venv=VENV):
    if os.path.exists(os.path.join(venv, 'bin/uwsgi')) and os.path.exists(os.path.join(venv, 'bin/keystone-manage')): return
    if not os.path.exists(os.path.join(venv, 'bin/python')): sh(sys.executable, '-m', 'venv', venv, timeout=120)
    sh(os.path.join(venv, 'bin/pip'), 'install', '-q', '--disable-pip-version-check', *PACKAGES, timeout=900)


class Keystone(Identity):
    """`prepare` makes its database and keys, `start` serves it as uwsgi does in production: forked workers, one request each at a time."""

    def __init__(self, state, name='keystone', venv=VENV):
        self.name, self.venv, self.dir = name, venv, os.path.join(state, name)
        self.context = self.process = None
        self.more = ''  # of keystone.conf
        os.makedirs(self.dir, exist_ok=True)
        self.fernet, self.credentials, self.database = (os.path.join(self.dir, d) for d in ('fernet-keys', 'credential-keys', 'keystone.db'))
        self.public, self.private = (os.path.join(self.dir, d) for d in ('jws-public', 'jws-private'))

    def configure(self, provider='fernet', rounds=4, cache=False):
        self.conf = os.path.join(self.dir, 'keystone.conf')
        with open(self.conf, 'w') as f: f.write(f'''[DEFAULT]
use_stderr = true
default_log_levels = keystone=WARNING
[database]
connection = sqlite:///{self.database}
[identity]
password_hash_rounds = {rounds}
[token]
provider = {provider}
[fernet_tokens]
key_repository = {self.fernet}
[jwt_tokens]
jws_public_key_repository = {self.public}
jws_private_key_repository = {self.private}
[credential]
key_repository = {self.credentials}
[auth]
methods = external,password,token,oauth1,mapped,application_credential,totp
[cache]
enabled = {'true' if cache else 'false'}
backend = dogpile.cache.memory
{self.more}''')

    def manage(self, *line): return sh(os.path.join(self.venv, 'bin/keystone-manage'), '--config-file', self.conf, *line, timeout=300, cwd=self.dir)

    def prepare(self, **kw):
        self.configure(**kw)
        own = ('--keystone-user', str(os.getuid()), '--keystone-group', str(os.getgid()))
        self.manage('db_sync')
        # Readers and a writer at once; it stays so.
        with sqlite3.connect(self.database) as db: db.execute('PRAGMA journal_mode=WAL')
        for setup in ('fernet_setup', 'credential_setup'): self.manage(setup, *own)
        for d in (self.public, self.private): os.makedirs(d, 0o700, exist_ok=True)
        self.manage('create_jws_keypair', '--force', *own)
        # It leaves the pair where it stands: private.pem and public.pem.
        for d, file in ((self.private, 'private.pem'), (self.public, 'public.pem')): shutil.move(os.path.join(self.dir, file), os.path.join(d, file))
        self.manage('bootstrap', '--bootstrap-password', PASSWORD, '--bootstrap-region-id', 'RegionOne', '--bootstrap-public-url', 'http://127.0.0.1/v3')

    def start(self, workers=1, module='keystone.wsgi.api:application'):
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
        env = {**os.environ, 'OS_KEYSTONE_CONFIG_FILES': self.conf, 'PYTHONWARNINGS': 'ignore'}
        env.pop('PYTHONDONTWRITEBYTECODE', None)
        self.log = open(os.path.join(self.dir, 'log'), 'w')
        self.process = subprocess.Popen(
            [os.path.join(self.venv, 'bin/uwsgi'), '--http11-socket', f'127.0.0.1:{port}', '--module', module, '--pythonpath', FIXTURES, '--virtualenv', self.venv,
             '--master', '--processes', str(workers), '--enable-threads', '--lazy-apps', '--thunder-lock', '--die-on-term', '--need-app', '--disable-logging',
             '--buffer-size', '65535'], env=env, stdout=self.log, stderr=self.log)
        self.url = f'http://127.0.0.1:{port}'
        until(f'{self.name} answers', lambda: self.alive() and sh('curl', '-sf', self.url + '/v3'), 120)
        self.password = PASSWORD
        self.token = self.login('admin', PASSWORD, {'project': {'name': 'admin', 'domain': {'id': 'default'}}})

    def dump(self, file):
        """As `sqlite3 keystone.db .dump`."""
        with sqlite3.connect(self.database) as db, open(file, 'w') as f:
            for line in db.iterdump(): f.write(line + '\n')
