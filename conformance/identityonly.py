"""Starts `allod server --services identity` for the scripts beside this one."""
import json, os, ssl, subprocess, urllib.error, urllib.request

from common import Failed, open_, until


class Identity:
    """The identity service of a cloud, alone, with a state directory of its own."""

    def __init__(self, allod, state, name, config='', password=None):
        self.allod, self.state, self.name = allod, os.path.join(state, name), name
        os.makedirs(self.state, exist_ok=True)
        self.config = os.path.join(state, f'{name}.toml')
        with open(self.config, 'w') as f: f.write('listen = "127.0.0.1:0"\nbcrypt_rounds = 4\n' + config)
        self.password = password
        self.process = None
        try:
            self.before()
            self.start()
        except BaseException:
            self.stop()
            raise

    def before(self): pass

    def start(self):
        name, config, allod = self.name, self.config, self.allod
        told = os.path.join(self.state, 'run/listening')
        if os.path.exists(told): os.remove(told)  # of a run before
        self.log = open(self.config.replace('.toml', '.log'), 'w')
        self.process = subprocess.Popen(
            [allod, 'server', '--services', 'identity', '--state', self.state, '--config', config],
            stdout=self.log, stderr=subprocess.STDOUT)
        self.base = until(f'{name} listens', lambda: self.alive() and open_(os.path.join(self.state, 'run/listening')).strip(), 120)
        self.url, self.ca = self.base + '/identity', os.path.join(self.state, 'ca.crt')
        self.context = ssl.create_default_context(cafile=self.ca)
        self.password = self.password or json.loads(open_(os.path.join(self.state, 'secrets.json')))['admin']
        self.token = self.login('admin', self.password, {'project': {'name': 'admin', 'domain': {'id': 'default'}}})

    def alive(self):
        if self.process.poll() is not None: raise SystemExit(f'{self.name} has ended: {open_(self.log.name)[-2000:]}')
        return True

    def stop(self):
        if not self.process: return
        self.process.terminate()
        try: self.process.wait(30)
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait()
        self.process = None

    def request(self, method, path, body=None, headers={}):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {'content-type': 'application/json', **headers}, method=method)
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=30) as answer:
                return answer.status, dict(answer.headers), json.loads(answer.read() or b'{}')
        except urllib.error.HTTPError as e:
            return e.code, dict(e.headers), json.loads(e.read() or b'{}')

    def login(self, user, password, scope):
        identity = {'methods': ['password'], 'password': {'user': {'name': user, 'domain': {'id': 'default'}, 'password': password}}}
        status, headers, body = self.request('POST', '/v3/auth/tokens', {'auth': {'identity': identity, 'scope': scope}})
        if status != 201: raise Failed(f'{self.name}: login of {user}: {status} {body}')
        return {k.lower(): v for k, v in headers.items()}['x-subject-token']

    def admin(self, method, path, body=None):
        status, _, answer = self.request(method, '/v3' + path, body, {'x-auth-token': self.token})
        if status >= 300: raise Failed(f'{self.name}: {method} {path}: {status} {answer}')
        return answer

    def make(self, kind, **fields): return self.admin('POST', f'/{kind}s', {kind: fields})[kind]['id']

    def role(self, name): return self.admin('GET', f'/roles?name={name}')['roles'][0]['id']
