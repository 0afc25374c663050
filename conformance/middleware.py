#!/usr/bin/env python3
"""The Python services glance and placement, unmodified, with keystonemiddleware, against Allod's identity service alone.

    conformance/middleware.py ALLOD [VENV]

VENV (`.venv-services`) is a virtual environment with glance and placement of 2026.1 and their clients; it is made from PyPI where it is
not there. keystonemiddleware's memory of tokens is off (`token_cache_time = -1`), so that each request asks Allod; by default it
remembers an answer for 300 s, whoever gave it.
"""
import json, os, subprocess, sys, tempfile, time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import Failed, open_, sh, until
from identityonly import Identity

ALLOD = sys.argv[1]
VENV = os.path.abspath(sys.argv[2] if len(sys.argv) > 2 else os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), '.venv-services'))
BIN = os.path.join(VENV, 'bin')
# Upper bounds of what they need, as in OpenStack's constraints of 2026.1: oslo.policy 6 has no enforce_scope, setuptools 82 no pkg_resources.
PACKAGES = ['glance>=32,<33', 'openstack-placement>=15,<16', 'python-openstackclient', 'osc-placement', 'oslo.policy<6', 'setuptools<81']
SERVE = '''
import importlib, socketserver, sys
from wsgiref.simple_server import WSGIServer, make_server
class Threads(socketserver.ThreadingMixIn, WSGIServer): daemon_threads = True
module, port_file = sys.argv[1:3]; sys.argv[1:] = []
httpd = make_server('127.0.0.1', 0, importlib.import_module(module).application, Threads)
open(port_file, 'w').write(str(httpd.server_port)); httpd.serve_forever()
'''


def step(text): print(f'{text} ... ', end='', flush=True)
def passed(): print('PASS', flush=True)


def install():
    if os.path.exists(os.path.join(BIN, 'glance-manage')): return
    begin = time.time()
    step('glance and placement from PyPI')
    if not os.path.exists(os.path.join(BIN, 'python')): sh(sys.executable, '-m', 'venv', VENV, timeout=120)
    sh(os.path.join(BIN, 'pip'), 'install', '-q', '--disable-pip-version-check', *PACKAGES, timeout=900)
    print(f'{time.time() - begin:.0f} s ... ', end='')
    passed()


def authtoken(cloud, user, password):
    return f'''
[keystone_authtoken]
www_authenticate_uri = {cloud.url}/v3
auth_url = {cloud.url}/v3
auth_type = password
username = {user}
password = {password}
project_name = service
user_domain_name = Default
project_domain_name = Default
cafile = {cloud.ca}
token_cache_time = -1
service_token_roles = service
service_token_roles_required = true
'''


class Service:
    def __init__(self, state, name, module, config, variable, sync):
        self.dir = os.path.join(state, name)
        os.makedirs(self.dir, exist_ok=True)
        for file, text in config.items():
            with open(os.path.join(self.dir, file), 'w') as f: f.write(text)
        env = {**os.environ, variable: self.dir, 'PYTHONWARNINGS': 'ignore'}
        env.pop('PYTHONDONTWRITEBYTECODE', None)
        sh(os.path.join(BIN, sync[0]), *sync[1:], env=env, timeout=300)
        port, self.log = os.path.join(self.dir, 'port'), os.path.join(self.dir, 'log')
        with open(self.log, 'w') as log:
            self.process = subprocess.Popen([os.path.join(BIN, 'python'), '-c', SERVE, module, port], env=env, stdout=log, stderr=log)
        number = until(f'{name} listens', lambda: self.alive() and open_(port), 180)
        self.url = f'http://127.0.0.1:{number}'

    def alive(self):
        if self.process.poll() is not None: raise SystemExit(f'{self.dir} has ended: {open_(self.log)[-3000:]}')
        return True

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def placement(cloud, state, password):
    text = f'[placement_database]\nconnection = sqlite:///{state}/placement.db\n[api]\nauth_strategy = keystone\n'
    config = {'placement.conf': text + authtoken(cloud, 'placement', password)}
    sync = ['placement-manage', '--config-file', os.path.join(state, 'placement', 'placement.conf'), 'db', 'sync']
    return Service(state, 'placement', 'placement.wsgi.api', config, 'OS_PLACEMENT_CONFIG_DIR', sync)


def glance(cloud, state, password):
    paste = open_(os.path.join(VENV, 'etc/glance/glance-api-paste.ini'))
    here = os.path.join(state, 'glance')
    text = f'''[DEFAULT]
use_stderr = true
enabled_backends = file:file
node_staging_uri = file://{here}/staging
[database]
connection = sqlite:///{state}/glance.db
[glance_store]
default_backend = file
[file]
filesystem_store_datadir = {here}/images
[os_glance_staging_store]
filesystem_store_datadir = {here}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {here}/tasks
[oslo_concurrency]
lock_path = {here}/lock
[paste_deploy]
flavor = keystone
config_file = {here}/glance-api-paste.ini
'''
    for name in ('images', 'staging', 'tasks', 'lock'): os.makedirs(os.path.join(here, name))
    config = {'glance-api.conf': text + authtoken(cloud, 'glance', password), 'glance-api-paste.ini': paste}
    sync = ['glance-manage', '--config-file', os.path.join(here, 'glance-api.conf'), 'db_sync']
    return Service(state, 'glance', 'glance.wsgi.api', config, 'OS_GLANCE_CONFIG_DIR', sync)


def run(cloud, state, services):
    project = cloud.admin('GET', '/projects?name=service')['projects'][0]['id']
    for name in ('glance', 'placement'):
        user = cloud.make('user', name=name, domain_id='default', password=f'pw-{name}')
        for role in ('service', 'admin'): cloud.admin('PUT', f'/projects/{project}/users/{user}/roles/{cloud.role(role)}')
    demo = cloud.make('project', name='demo', domain_id='default')
    for name, role in (('demo', 'member'), ('viewer', 'reader')):
        user = cloud.make('user', name=name, domain_id='default', password=f'pw-{name}')
        cloud.admin('PUT', f'/projects/{demo}/users/{user}/roles/{cloud.role(role)}')
    for make, kind, name in ((placement, 'placement', 'placement'), (glance, 'image', 'glance')):
        service = make(cloud, state, f'pw-{name}')
        services.append(service)
        made = cloud.make('service', type=kind, name=name)
        cloud.make('endpoint', service_id=made, interface='public', region_id='RegionOne', url=service.url)

    def client(user, password, project, *line, ok=True):
        env = {k: v for k, v in os.environ.items() if not k.startswith('OS_')}
        env.update(OS_AUTH_URL=cloud.url + '/v3', OS_USERNAME=user, OS_PASSWORD=password, OS_PROJECT_NAME=project, OS_CACERT=cloud.ca,
                   OS_USER_DOMAIN_NAME='Default', OS_PROJECT_DOMAIN_NAME='Default', OS_IDENTITY_API_VERSION='3', PYTHONWARNINGS='ignore')
        p = subprocess.run([os.path.join(BIN, 'openstack'), *line], env=env, capture_output=True, text=True, timeout=240)
        if bool(p.returncode) == ok: raise Failed(f'openstack {" ".join(line)}: exit {p.returncode}: {p.stderr[-800:]}')
        return json.loads(p.stdout) if ok and '-f' in line else p.stdout + p.stderr

    def demo_does(*line, **kw): return client('demo', 'pw-demo', 'demo', *line, **kw)

    step('glance takes an image of a member, and gives it back')
    disk = os.path.join(state, 'disk')
    with open(disk, 'wb') as f: f.write(os.urandom(100_000))
    made = demo_does('image', 'create', '--disk-format', 'raw', '--container-format', 'bare', '--file', disk, 'one', '-f', 'json')
    shown = demo_does('image', 'show', made['id'], '-f', 'json')
    if (shown['status'], shown['owner']) != ('active', demo): raise Failed(f'{shown}')
    demo_does('image', 'save', '--file', disk + '.back', made['id'])
    if open(disk, 'rb').read() != open(disk + '.back', 'rb').read(): raise Failed('the image is another')
    passed()

    step('glance obeys the roles of the token: a reader reads')
    if [i['ID'] for i in client('viewer', 'pw-viewer', 'demo', 'image', 'list', '-f', 'json')] != [made['id']]: raise Failed('list')
    client('viewer', 'pw-viewer', 'demo', 'image', 'delete', made['id'], ok=False)
    passed()

    step('placement is the administrator\'s')
    client('admin', cloud.password, 'admin', 'resource', 'provider', 'create', 'host-1', '-f', 'json')
    found = client('admin', cloud.password, 'admin', 'resource', 'provider', 'list', '-f', 'json')
    if [p['name'] for p in found] != ['host-1']: raise Failed(f'{found}')
    demo_does('resource', 'provider', 'create', 'host-2', ok=False)
    passed()

    step('a revoked token and a forged one are refused')
    token = cloud.login('demo', 'pw-demo', {'project': {'id': demo}})
    asked = lambda t: sh('curl', '-s', '-o', '/dev/null', '-w', '%{http_code}', '-H', f'x-auth-token: {t}', services[1].url + '/v2/images')
    if asked(token) != '200': raise Failed(f'good token: {asked(token)}')
    cloud.request('DELETE', '/v3/auth/tokens', headers={'x-auth-token': token, 'x-subject-token': token})
    fresh = cloud.login('demo', 'pw-demo', {'project': {'id': demo}})
    if asked(fresh[:-4] + 'AAAA') != '401': raise Failed('a forged token is taken')
    if asked(token) != '401': raise Failed('a revoked token is taken')
    passed()


def main():
    install()
    with tempfile.TemporaryDirectory(prefix='allod-middleware-') as state:
        running = []
        cloud = Identity(ALLOD, state, 'identity')
        try: run(cloud, state, running)
        finally:
            for service in [*running, cloud]: service.stop()


if __name__ == '__main__':
    try: main()
    except Failed as e: sys.exit(f'FAIL: {e}')
