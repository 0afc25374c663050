#!/usr/bin/env python3
"""Two Allod clouds and the unmodified `openstack` client: a user of the first works in the second, with roles from claims.

    conformance/federation.py ALLOD [DIRECTORY WITH openstack]

Each way of keystoneauth is used: v3oidcpassword, v3oidcclientcredentials, v3oidcaccesstoken, v3oidcdeviceauthz. A claim that is
removed takes its roles along: at the next token, and from a token that was got before.
"""
import json, os, re, subprocess, sys, tempfile, threading, time, urllib.parse, urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import Failed, sh, until
from identityonly import Identity

ALLOD = sys.argv[1]
OPENSTACK = os.path.join(sys.argv[2], 'openstack') if len(sys.argv) > 2 else 'openstack'


def step(text): print(f'{text} ... ', end='', flush=True)
def passed(): print('PASS', flush=True)


def run(first, second, state):
    bundle = os.path.join(state, 'both.crt')
    with open(bundle, 'w') as f: f.write(open(first.ca).read() + open(second.ca).read())
    for cloud in (first, second): cloud.demo = cloud.make('project', name='demo', domain_id='default')
    user = first.make('user', name='ada', domain_id='default', password='pw-ada', email='ada@first.example')
    first.admin('PUT', f'/projects/{first.demo}/users/{user}/roles/{first.role("member")}')
    team = first.make('group', name='partner-dev', domain_id='default')
    first.admin('PUT', f'/groups/{team}/users/{user}')
    client = first.admin('POST', '/OS-OIDC/clients', {'client': {'name': 'second cloud', 'grant_types': [
        'password', 'authorization_code', 'urn:ietf:params:oauth:grant-type:device_code']}})['client']
    group = second.make('group', name='partner-dev', domain_id='default')
    second.admin('PUT', f'/projects/{second.demo}/groups/{group}/roles/{second.role("member")}')
    oidc = {'issuer': first.url, 'audiences': [client['id'], 'second'], 'ca': open(first.ca).read()}
    second.admin('PUT', '/OS-FEDERATION/identity_providers/first', {'identity_provider': {'enabled': True, 'oidc': oidc}})
    rules = [
        {'local': [{'user': {'id': '{0}', 'name': '{1}'}}], 'remote': [{'type': 'sub'}, {'type': 'OIDC-preferred_username'}]},
        {'local': [{'groups': '{0}', 'domain': {'id': 'default'}}], 'remote': [{'type': 'groups', 'whitelist': ['partner-dev']}]},
        {'local': [{'projects': [{'name': 'robots', 'roles': [{'name': 'reader'}]}]}],
         'remote': [{'type': 'openstack_roles', 'any_one_of': ['member@demo', 'reader@demo']}]},
    ]
    second.admin('PUT', '/OS-FEDERATION/mappings/first', {'mapping': {'rules': rules}})
    second.admin('PUT', '/OS-FEDERATION/identity_providers/first/protocols/openid', {'protocol': {'mapping_id': 'first'}})
    domain = second.admin('GET', '/OS-FEDERATION/identity_providers/first')['identity_provider']['domain_id']

    def env(kind, **more):
        base = {k: v for k, v in os.environ.items() if not k.startswith('OS_')}
        return {**base, 'OS_AUTH_TYPE': kind, 'OS_AUTH_URL': second.url + '/v3', 'OS_IDENTITY_PROVIDER': 'first', 'OS_PROTOCOL': 'openid',
                'OS_DISCOVERY_ENDPOINT': first.url + '/.well-known/openid-configuration', 'OS_CACERT': bundle,
                'OS_IDENTITY_API_VERSION': '3', 'OS_PROJECT_NAME': 'demo', 'OS_PROJECT_DOMAIN_ID': 'default', **more}

    def token(environment):
        return json.loads(sh(OPENSTACK, 'token', 'issue', '-f', 'json', env=environment, timeout=180))

    def roles(text):
        status, _, body = second.request('GET', '/v3/auth/tokens', headers={'x-auth-token': second.token, 'x-subject-token': text})
        return sorted(r['name'] for r in body['token'].get('roles', [])) if status == 200 else []

    secret = {'OS_CLIENT_ID': client['id'], 'OS_CLIENT_SECRET': client['secret'], 'OS_OPENID_SCOPE': 'openid'}
    by_password = env('v3oidcpassword', OS_USERNAME='ada', OS_PASSWORD='pw-ada', **secret)
    step('v3oidcpassword gets a project-scoped token in the second cloud')
    got = token(by_password)
    if got['project_id'] != second.demo: raise Failed(f'not scoped: {got}')
    if roles(got['id']) != ['member', 'reader']: raise Failed(f'roles: {roles(got["id"])}')
    passed()

    step('v3oidcclientcredentials: an application credential is its own client')
    scope = {'project': {'id': first.demo}}
    own = first.login('ada', 'pw-ada', scope)
    _, _, made = first.request('POST', f'/v3/users/{user}/application_credentials',
                               {'application_credential': {'name': 'robot'}}, {'x-auth-token': own})
    robot = made['application_credential']
    machine = token(env('v3oidcclientcredentials', OS_CLIENT_ID=robot['id'], OS_CLIENT_SECRET=robot['secret'],
                        OS_OPENID_SCOPE='openid aud:second', OS_PROJECT_NAME='robots', OS_PROJECT_DOMAIN_ID=domain))
    if roles(machine['id']) != ['reader']: raise Failed(f'roles: {roles(machine["id"])}')
    passed()

    step('v3oidcaccesstoken: a token of the first cloud is exchanged (RFC 8693) and used')
    first.admin('PATCH', f'/OS-OIDC/clients/{client["id"]}', {'client': {'grant_types': [
        'password', 'urn:ietf:params:oauth:grant-type:device_code', 'urn:ietf:params:oauth:grant-type:token-exchange']}})

    def form(path, **fields):
        data = urllib.parse.urlencode(fields).encode()
        with urllib.request.urlopen(first.url + path, data, context=first.context, timeout=30) as answer: return answer.read().decode()

    exchanged = json.loads(form('/oidc/token', grant_type='urn:ietf:params:oauth:grant-type:token-exchange', subject_token=own,
                                subject_token_type='urn:ietf:params:oauth:token-type:access_token',
                                client_id=client['id'], client_secret=client['secret']))
    got2 = token(env('v3oidcaccesstoken', OS_ACCESS_TOKEN=exchanged['access_token']))
    if roles(got2['id']) != ['member', 'reader']: raise Failed(f'roles: {roles(got2["id"])}')
    passed()

    step('v3oidcdeviceauthz: a person allows the client on another screen')
    device = subprocess.Popen([OPENSTACK, 'token', 'issue', '-f', 'json'], env=env('v3oidcdeviceauthz', **secret),
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    threading.Thread(target=lambda: said.extend(iter(device.stdout.readline, '')), daemon=True).start()
    code = until('the client shows a code', lambda: re.search(r'user_code=([A-Z]{4}-[A-Z]{4})', ''.join(said)) or
                 re.search(r'\b([A-Z]{4}-[A-Z]{4})\b', ''.join(said)), 90).group(1)
    form('/oidc/device', user_code=code, username='ada', password='pw-ada')
    if device.wait(90): raise Failed(''.join(said)[-800:])
    until('the token is shown', lambda: '"project_id"' in ''.join(said), 10)
    passed()

    step('a removed claim takes its roles along: next token, and a token got before')
    first.admin('DELETE', f'/groups/{team}/users/{user}')
    time.sleep(1.1)  # claims are ordered by whole seconds
    later = subprocess.run([OPENSTACK, 'token', 'issue'], env=by_password, capture_output=True, text=True, timeout=180)
    if later.returncode == 0: raise Failed('still a token')
    if roles(got['id']) or roles(got2['id']): raise Failed('the old token still has roles')
    passed()


def main():
    with tempfile.TemporaryDirectory(prefix='allod-federation-') as state:
        clouds = []
        try:
            for name in ('first', 'second'): clouds.append(Identity(ALLOD, state, name))
            run(*clouds, state)
        finally:
            for cloud in clouds: cloud.stop()


if __name__ == '__main__':
    try: main()
    except Failed as e: sys.exit(f'FAIL: {e}')
