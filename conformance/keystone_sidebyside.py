#!/usr/bin/env python3
"""A real Keystone of 2026.1 and Allod side by side: the same users, each reads what the other signs.

    conformance/keystone_sidebyside.py ALLOD

A Keystone from PyPI is filled (conformance/fixtures/fill_keystone.py), its database is dumped and imported by `allod identity import`, its
Fernet keys are shared. Then: hashes of each of Keystone's kinds let their users in; tokens of every form that one of the two makes are
validated by the other, and both say the same of them; tokens as JWS too, once each has the other's public key. The OAuth 1.0a dance
is done by the unmodified keystoneclient and keystoneauth, at both; an access token of Keystone's works at Allod after the import. OAuth 2.0 by
client certificate (RFC 8705): tokens bound to one, by the unmodified keystoneauth at Allod, and what they say of it is what the filter of the
unmodified keystonemiddleware makes of it. SAML by which each vouches for its users (vouching.py) says the same, and xmlsec1 and pysaml2
take Allod's. A web server in front lets users in at both (`external`, `mapped`).
"""
import base64, glob, hashlib, hmac, json, os, shutil, ssl, struct, sys, tempfile, time, urllib.request
from urllib.parse import urlencode

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from common import Failed, open_, sh
import vouching
from identityonly import Identity
from realkeystone import PASSWORD, VENV, Keystone, install

ALLOD = os.path.realpath(sys.argv[1])
SEED = 'GEZDGNBVGY3TQOJQ'  # of the user `bcrypt`, by fill_keystone.py
DANCE = '''
import json, sys
from keystoneauth1 import session
from keystoneauth1.extras.oauth1 import v3 as oauth1
from keystoneauth1.identity import v3
from keystoneclient.v3 import client
url, ca, password, project, role = sys.argv[1:6]
verify = ca or True
if len(sys.argv) > 6: keys = json.loads(sys.argv[6])
else:
    who = v3.Password(auth_url=url, username='admin', password=password, user_domain_id='default', project_name='admin', project_domain_id='default')
    o = client.Client(session=session.Session(auth=who, verify=verify), endpoint_override=url).oauth1
    c = o.consumers.create(description='dance')
    asked = o.request_tokens.create(c.id, c.secret, project)
    said = o.request_tokens.authorize(asked.key, [role])
    got = o.access_tokens.create(c.id, c.secret, asked.key, asked.secret, said.oauth_verifier)
    keys = dict(consumer_key=c.id, consumer_secret=c.secret, access_key=got.key, access_secret=got.secret)
token = session.Session(auth=oauth1.OAuth1(url, **keys), verify=verify).get_token()
print(json.dumps({'keys': keys, 'token': token}))
'''
MTLS = '''
import json, logging, ssl, sys
from keystoneauth1 import session
from keystoneauth1.identity.v3 import OAuth2mTlsClientCredential
from keystonemiddleware.oauth2_mtls_token import OAuth2mTlsProtocol as Filter
url, ca, certificate, key, client, path = sys.argv[1:7]
plugin = OAuth2mTlsClientCredential(url, url + '/OS-OAUTH2/token', client)
s = session.Session(auth=plugin, verify=ca, cert=(certificate, key))
status = s.get(url + path).status_code
said = s.get(url + '/auth/tokens', headers={'x-subject-token': s.get_token()}).json()['token']['oauth2_credential']['x5t#S256']
class Self: log = logging.getLogger()
fits = Filter._confirm_certificate_thumbprint(Self, said, ssl.PEM_cert_to_DER_cert(open(certificate).read()))
print(json.dumps({'status': status, 'fits': fits, 'token': s.get_token()}))
'''


def step(text): print(f'{text} ... ', end='', flush=True)
def passed(more=''): print('PASS' + more, flush=True)


class Allod(Identity):
    """Allod on an imported Keystone, with its Fernet keys."""

    def __init__(self, state, keystone, dump):
        self.keystone, self.dump = keystone, dump
        config = (f'[passwords]\nadmin = "{PASSWORD}"\n[identity.oauth2]\nclient_ca = "{state}/clients.crt"\n'
                  f'[identity.external]\nuser_header = "X-Remote-User"\nsecret_file = "{state}/front"\n'
                  f'[identity.saml]\n{vouching.settings(*keystone.saml, quoted=True)}')
        super().__init__(ALLOD, state, 'allod', config, PASSWORD)

    def before(self):
        os.symlink(self.keystone.fernet, os.path.join(self.state, 'fernet'))
        p = sh(ALLOD, 'identity', 'import', '--state', self.state, '--config', self.config, '--from-dump', self.dump,
               '--credential-keys', self.keystone.credentials, '--json', timeout=120)
        self.report = json.loads(p)


def auth(cloud, identity, scope=None, headers={}):
    body = {'auth': {'identity': identity, **({'scope': scope} if scope else {})}}
    status, headers, answer = cloud.request('POST', '/v3/auth/tokens', body, headers)
    if status != 201: raise Failed(f'{cloud.name}: {identity["methods"]} {scope}: {status} {answer}')
    return {k.lower(): v for k, v in headers.items()}['x-subject-token']


def by_password(id, password): return {'methods': ['password'], 'password': {'user': {'id': id, 'password': password}}}


def said(cloud, token):
    """What a cloud says of a token, as far as both must say the same."""
    headers = {'x-auth-token': cloud.token, 'x-subject-token': token, 'openstack-identity-access-rules': '1.0'}
    status, _, answer = cloud.request('GET', '/v3/auth/tokens?nocatalog', headers=headers)
    if status != 200: return status
    t = answer['token']
    same = {k: t.get(k) for k in ('expires_at', 'audit_ids', 'project', 'domain', 'system', 'OS-TRUST:trust', 'OS-OAUTH1', 'oauth2_credential', 'is_domain')}
    if same['is_domain'] is None: same['is_domain'] = False
    credential = t.get('application_credential') or {}
    rules = [{k: r[k] for k in ('service', 'method', 'path')} for r in credential.get('access_rules') or []]
    user = {k: t['user'].get(k) for k in ('id', 'name', 'domain')}
    # A Fernet token of Keystone's does not say `oauth2_credential`: its `[auth] methods` has no bit for it.
    methods = sorted(m for m in t['methods'] if m != 'oauth2_credential')
    return {**same, 'methods': methods, 'user': user, 'issued_at': t['issued_at'][:19], 'roles': sorted(r['id'] for r in t.get('roles', [])),
            'credential': (credential.get('id'), credential.get('restricted'), rules)}


def dance(cloud, project, role, keys=None):
    ca = getattr(cloud, 'ca', '')
    line = [os.path.join(VENV, 'bin/python'), '-W', 'ignore', '-c', DANCE, cloud.url + '/v3', ca, cloud.password, project, role]
    return json.loads(sh(*line, *([json.dumps(keys)] if keys else []), timeout=120))


def certify(state, user):
    """An authority for clients, and a certificate of it for a user: `clients.crt`, `client.crt`, `client.key`."""
    at = lambda name: os.path.join(state, name)
    new = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes')
    sh('openssl', 'req', '-x509', *new, '-keyout', at('clients.key'), '-out', at('clients.crt'), '-subj', '/O=Clients, "Inc"/CN=clients.test', '-days', '2')
    sh('openssl', 'req', *new, '-keyout', at('client.key'), '-out', at('client.csr'), '-subj', f'/CN=bcrypt/UID={user}/emailAddress=bcrypt@example.org/O=Default/DC=default')
    # Without an extension it would be of version 1, which rustls does not take.
    with open(at('client.ext'), 'w') as f: f.write('extendedKeyUsage = clientAuth\n')
    sh('openssl', 'x509', '-req', '-in', at('client.csr'), '-CA', at('clients.crt'), '-CAkey', at('clients.key'), '-CAcreateserial', '-days', '2',
       '-extfile', at('client.ext'), '-out', at('client.crt'))
    return at('client.crt'), at('client.key')


# As in Keystone's guide; the issuer's name is told as RFC 4514 writes it.
RULES = [{
    'local': [{'user': {'name': '{0}', 'id': '{1}', 'email': '{2}', 'domain': {'name': '{3}', 'id': '{4}'}}}],
    'remote': [*({'type': f'SSL_CLIENT_SUBJECT_DN_{key}'} for key in ('CN', 'UID', 'EMAILADDRESS', 'O', 'DC')),
               {'type': 'SSL_CLIENT_ISSUER_DN_CN', 'any_one_of': ['clients.test']},
               {'type': 'SSL_CLIENT_ISSUER_DN_O', 'any_one_of': ['Clients\\, \\"Inc\\"']}]}]


def by_certificate(cloud, made, client=None):
    """A token of RFC 8705: over TLS at Allod; Keystone is told what its web server would have verified."""
    certificate, key = made['certificate']
    form = urlencode({'grant_type': 'client_credentials', 'client_id': client or made['users']['bcrypt']}).encode()
    request = urllib.request.Request(cloud.url + '/v3/OS-OAUTH2/token', form, {'content-type': 'application/x-www-form-urlencoded'})
    context = None
    if cloud.context:
        context = ssl.create_default_context(cafile=cloud.ca)
        context.load_cert_chain(certificate, key)
    else:
        text = ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(open_(certificate)))
        request.add_header('x-client-certificate', base64.b64encode(text.encode()).decode())
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer: return json.loads(answer.read())['access_token']
    except urllib.error.HTTPError as e: return e.code, json.loads(e.read())


def in_front(cloud, made, method):
    """A token for whom a web server in front has let in; it says so in Keystone's environment, and to Allod in headers."""
    payload = {'identity_provider': 'front', 'protocol': 'mapped'} if method == 'mapped' else {}
    if cloud.context: headers = {'x-front-end-secret': made['front'], 'x-remote-user': 'bcrypt', 'visitor': 'bcrypt'}
    else: headers = {'x-environ': json.dumps({'REMOTE_USER': 'bcrypt'} if method == 'external' else {'visitor': 'bcrypt'})}
    return auth(cloud, {'methods': [method], method: payload}, {'project': {'id': made['child']}}, headers)


def totp():
    step = struct.pack('>Q', int(time.time()) // 30)
    mac = hmac.new(base64.b32decode(SEED), step, hashlib.sha1).digest()
    at = mac[-1] & 15
    return '%06d' % ((struct.unpack('>I', mac[at:at + 4])[0] & 0x7fffffff) % 10 ** 6)


def forms(cloud, made, program):
    """A token of each form, by name."""
    users, child = made['users'], {'project': {'id': made['child']}}
    second, scrypt = by_password(users['bcrypt'], 'pw-second'), by_password(users['scrypt'], 'pw-scrypt')
    credential = lambda id, secret: {'methods': ['application_credential'], 'application_credential': {'id': id, 'secret': secret}}
    tokens = {
        'unscoped': auth(cloud, second, {'unscoped': {}}),
        'project': auth(cloud, second, child),
        'domain': auth(cloud, scrypt, {'domain': {'id': made['domain']}}),
        'system': auth(cloud, scrypt, {'system': {'all': True}}),
        'application credential': auth(cloud, credential(made['plain'], 'plain-secret')),
        'access rules': auth(cloud, credential(made['robot'], 'robot-secret')),
        'trust': auth(cloud, scrypt, {'OS-TRUST:trust': {'id': made['trust']}}),
        'access token': dance(cloud, made['child'], made['reader'], program)['token'],
        'certificate': by_certificate(cloud, made),
        'external': in_front(cloud, made, 'external'),
        'mapped': in_front(cloud, made, 'mapped'),
    }
    tokens['token'] = auth(cloud, {'methods': ['token'], 'token': {'id': tokens['unscoped']}}, child)
    return tokens


def exchange(a, b, made, program):
    """Tokens that `a` makes, as both see them."""
    for form, token in forms(a, made, program).items():
        if not isinstance(token, str): raise Failed(f'{form} token of {a.name}: {token}')
        own, other = said(a, token), said(b, token)
        if own != other: raise Failed(f'{form} token of {a.name}: {a.name} says {own}, {b.name} {other}')
        forged = token[:40] + ('A' if token[40] != 'A' else 'B') + token[41:]
        if (said(a, forged), said(b, forged)) != (404, 404): raise Failed(f'{form}: a forged token is taken')


def run(state, running):
    keystone = Keystone(state, venv=VENV)
    running.append(keystone)
    step('a real Keystone, filled')
    begin = time.time()
    install(VENV)
    keystone.saml = vouching.keys(state)
    metadata = os.path.join(state, 'metadata.xml')
    keystone.more = f'[saml]\nidp_metadata_path = {metadata}\n' + vouching.settings(*keystone.saml, quoted=False)
    keystone.prepare()
    with open(metadata, 'w') as f: f.write(keystone.manage('saml_idp_metadata'))
    made = json.loads(sh(os.path.join(VENV, 'bin/python'), '-W', 'ignore', os.path.join(HERE, 'fixtures/fill_keystone.py'), keystone.conf, timeout=300))
    made['certificate'] = certify(state, made['users']['bcrypt'])
    keystone.start(module='keystone_front')
    keystone.admin('PUT', '/OS-FEDERATION/mappings/oauth2_mapping', {'mapping': {'rules': RULES}})
    keystone.admin('PATCH', f'/users/{made["users"]["bcrypt"]}', {'user': {'default_project_id': made['child']}})
    made['reader'] = keystone.role('reader')
    urls = {'sp_url': 'https://second.test/Shibboleth.sso/SAML2/ECP?a&b', 'auth_url': 'https://second.test/v3/OS-FEDERATION/identity_providers/first/protocols/mapped/auth'}
    for sp, enabled in (('second', True), ('off', False)):
        keystone.admin('PUT', f'/OS-FEDERATION/service_providers/{sp}', {'service_provider': {'enabled': enabled, **urls}})
    # A web server in front: whom it lets in is a user of this cloud.
    rules = [{'local': [{'user': {'name': '{0}', 'type': 'local', 'domain': {'id': 'default'}}}], 'remote': [{'type': 'visitor'}]}]
    keystone.admin('PUT', '/OS-FEDERATION/identity_providers/front', {'identity_provider': {'enabled': True}})
    keystone.admin('PUT', '/OS-FEDERATION/mappings/front', {'mapping': {'rules': rules}})
    keystone.admin('PUT', '/OS-FEDERATION/identity_providers/front/protocols/mapped', {'protocol': {'mapping_id': 'front'}})
    made['front'] = os.urandom(24).hex()
    with open(os.open(os.path.join(state, 'front'), os.O_WRONLY | os.O_CREAT, 0o600), 'w') as f: f.write(made['front'])
    # Names of which XML could take something for its own.
    strange = {kind: keystone.make(kind, name=f'{vouching.STRANGE} {kind}', **more) for kind, more in
               {'domain': {}, 'project': {}, 'role': {}, 'user': {'password': 'pw-strange'}, 'group': {}}.items()}
    keystone.admin('PUT', f'/projects/{strange["project"]}/users/{strange["user"]}/roles/{strange["role"]}')
    keystone.admin('PUT', f'/projects/{strange["project"]}/users/{strange["user"]}/roles/{made["reader"]}')
    keystone.admin('PUT', f'/groups/{strange["group"]}/users/{strange["user"]}')
    made['strange'] = strange
    admin = keystone.admin('GET', '/users?name=admin')['users'][0]['id']
    keystone.admin('PUT', f'/projects/{made["child"]}/users/{admin}/roles/{made["reader"]}')
    passed(f' ({time.time() - begin:.0f} s)')

    step('OAuth 1.0a by keystoneclient and keystoneauth, at Keystone')
    program = dance(keystone, made['child'], made['reader'])['keys']
    passed()

    step('its database is imported')
    dump = os.path.join(state, 'keystone.sql')
    keystone.dump(dump)
    allod = Allod(state, keystone, dump)
    running.append(allod)
    taken, left = allod.report['taken'], allod.report['left']
    for kind in ('users', 'projects', 'trusts', 'application credentials', 'credentials', 'consumers', 'access tokens'):
        if not taken.get(kind): raise Failed(f'{kind} were not taken: {allod.report}')
    if taken.get('mappings') != 2 or taken.get('service providers') != 2: raise Failed(f'{allod.report}')
    passed(f' ({sum(taken.values())} rows taken, left: {left or "none"})')

    step('hashes of bcrypt, bcrypt_sha256, scrypt and pbkdf2_sha512 verify')
    for algorithm, id in made['users'].items():
        auth(allod, by_password(id, 'pw-second' if algorithm == 'bcrypt' else f'pw-{algorithm}'))
        body = {'auth': {'identity': by_password(id, 'pw-wrong')}}
        if allod.request('POST', '/v3/auth/tokens', body)[0] != 401: raise Failed(f'{algorithm}: a wrong password is taken')
    passed()

    step('a TOTP seed that Keystone encrypted lets its user in')
    auth(allod, {'methods': ['totp'], 'totp': {'user': {'id': made['users']['bcrypt'], 'passcode': totp()}}})
    passed()

    step('an access token of Keystone\'s works at Allod')
    shown = said(allod, dance(allod, made['child'], made['reader'], program)['token'])
    if shown['OS-OAUTH1'] != {'access_token_id': program['access_key'], 'consumer_id': program['consumer_key']}: raise Failed(f'{shown}')
    passed()

    step('OAuth 1.0a by keystoneclient and keystoneauth, at Allod')
    dance(allod, made['child'], made['reader'])
    passed()

    step('a certificate gets a bound token, by keystoneauth at Allod, that keystonemiddleware knows it by')
    mtls = json.loads(sh(os.path.join(VENV, 'bin/python'), '-W', 'ignore', '-c', MTLS, allod.url + '/v3', allod.ca, *made['certificate'],
                         made['users']['bcrypt'], '/auth/projects', timeout=120))
    if (mtls['status'], mtls['fits']) != (200, True): raise Failed(f'{mtls}')
    if allod.request('GET', '/v3/auth/projects', headers={'x-auth-token': mtls['token']})[0] != 401: raise Failed('it is good without its certificate')
    for cloud in (keystone, allod):
        refused = by_certificate(cloud, made, made['users']['scrypt'])
        if refused != (401, {'error': 'invalid_client', 'error_description': 'Client authentication failed.'}): raise Failed(f'{cloud.name}: {refused}')
    passed()

    step('in SAML both say the same of a user, and refuse alike')
    clouds, strange = (keystone, allod), made['strange']
    ordinary = [auth(c, by_password(made['users']['bcrypt'], 'pw-second'), {'project': {'id': made['child']}}) for c in clouds]
    bare = [auth(c, by_password(made['users']['bcrypt'], 'pw-second'), {'unscoped': {}}) for c in clouds]
    odd = [auth(c, by_password(strange['user'], 'pw-strange'), {'project': {'id': strange['project']}}) for c in clouds]
    documents = [vouching.same(clouds, tokens) for tokens in (ordinary, odd)]
    vouching.told_alike(clouds, ordinary, bare)
    about = [vouching.document(c, vouching.METADATA) for c in clouds]
    shapes = [vouching.shape(vouching.tree.fromstring(text.encode())) for _, _, text in about]
    if shapes[0] != shapes[1] or [status for status, *_ in about] != [200, 200]: raise Failed(f'metadata: {shapes}')
    passed()

    step('xmlsec1 and pysaml2 believe what Allod says, and no forgery')
    vouching.believed(documents[0], keystone.saml[0], state)
    for path, text in documents[1].items():
        if not vouching.verifies(text, keystone.saml[0], state): raise Failed(f'xmlsec1 does not believe {text}')
    names, _ = vouching.values(documents[1][''])
    if names['openstack_user'] != [f'{vouching.STRANGE} user'] or f'{vouching.STRANGE} role' not in names['openstack_roles']: raise Failed(f'{names}')
    own = os.path.join(state, 'allod-metadata.xml')
    with open(own, 'w') as f: f.write(about[1][2])
    with open(os.path.join(state, 'response.xml'), 'w') as f: f.write(documents[1][''])
    python = os.path.join(VENV, 'bin/python')
    read = json.loads(sh(python, '-W', 'ignore', '-c', vouching.BELIEVE, os.path.join(state, 'response.xml'), own, urls['sp_url'], timeout=60))
    if (read['issuer'], read['user'], read['said']) != (vouching.ENTITY, f'{vouching.STRANGE} user', names): raise Failed(f'{read}, {names}')
    passed()

    secret = {'secret': made['front'], 'attributes': ['visitor']}
    allod.admin('PATCH', '/OS-FEDERATION/identity_providers/front', {'identity_provider': {'front_end': secret}})
    for kind in ('Fernet', 'JWS'):
        if kind == 'JWS':
            for cloud in (allod, keystone): cloud.stop()
            with open(allod.config, 'a') as f: f.write('[identity]\ntoken_provider = "jws"\n')
            allod.start()  # makes its pair
            keystone.configure(provider='jws')
            for file in glob.glob(os.path.join(allod.state, 'jws-public-keys/*')): shutil.copy(file, keystone.public)
            shutil.copy(os.path.join(keystone.public, 'public.pem'), os.path.join(allod.state, 'jws-public-keys/keystone.pem'))
            keystone.start(module='keystone_front')
        for a, b in ((keystone, allod), (allod, keystone)):
            step(f'{kind} tokens of {a.name}, of each form, validated by {b.name}')
            exchange(a, b, made, program)
            passed()

    step('what is revoked at Allod is revoked there (each keeps its own list)')
    token = auth(allod, by_password(made['users']['bcrypt'], 'pw-second'), {'project': {'id': made['child']}})
    allod.request('DELETE', '/v3/auth/tokens', headers={'x-auth-token': token, 'x-subject-token': token})
    if (said(allod, token), type(said(keystone, token))) != (404, dict): raise Failed('revocation')
    passed()


def main():
    begin = time.time()
    with tempfile.TemporaryDirectory(prefix='allod-sidebyside-') as state:
        running = []
        try: run(state, running)
        finally:
            for cloud in running: cloud.stop()
    print(f'{time.time() - begin:.0f} s')


if __name__ == '__main__':
    try: main()
    except Failed as e: sys.exit(f'FAIL: {e}')
