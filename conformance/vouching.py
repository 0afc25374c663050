"""What keystone_sidebyside.py asks of two clouds that vouch for their users in SAML (Keystone to Keystone).

The same user's assertion of both, compared element by element but for ids, times and signatures; xmlsec1 (Debian) and pysaml2 (PyPI) verify
Allod's; the unmodified keystoneauth takes it to a service provider. That one is a stand-in for Apache with mod_shib: it has xmlsec1 verify, and tells
the cloud behind it what was said as a front end does.
"""
import http.server, json, os, re, ssl, threading, urllib.error, urllib.request
import xml.etree.ElementTree as tree

from common import Failed, open_, sh

ENTITY = 'https://first.test/v3/OS-FEDERATION/saml2/idp'
SSO = 'https://first.test/v3/OS-FEDERATION/saml2/sso'
ABOUT = {'idp_entity_id': ENTITY, 'idp_sso_endpoint': SSO, 'idp_lang': 'de', 'idp_organization_name': 'First', 'idp_organization_display_name': 'First & <Söhne>',
         'idp_organization_url': 'https://first.test/', 'idp_contact_company': 'First', 'idp_contact_name': 'Ada', 'idp_contact_surname': 'Lovelace',
         'idp_contact_email': 'ada@first.test', 'idp_contact_telephone': '+49 30 1', 'idp_contact_type': 'technical', 'assertion_expiration_time': 1200}
# Whatever XML could take for something else.
STRANGE = 'K2K <&> "q" \'a\' ]]> é ß 😀 <!--x--> &amp; ;'
SAML, DS = '{urn:oasis:names:tc:SAML:2.0:assertion}', '{http://www.w3.org/2000/09/xmldsig#}'
VARIES = ('ID', 'IssueInstant', 'AuthnInstant', 'SessionIndex', 'NotOnOrAfter', 'SessionNotOnOrAfter')
PATH = '/v3/auth/OS-FEDERATION/saml2'
METADATA = '/v3/OS-FEDERATION/saml2/metadata'
CARRY = '''
import json, sys
from keystoneauth1 import session
from keystoneauth1.identity import v3
url, ca, user, password, project, sp = sys.argv[1:7]
own = v3.Password(auth_url=url, user_id=user, password=password, project_id=project)
there = v3.Keystone2Keystone(own, sp)
s = session.Session(verify=ca)
print(json.dumps({'user': there.get_user_id(s), 'token': there.get_token(s)}))
'''
BELIEVE = '''
import json, sys
from saml2 import BINDING_HTTP_POST
from saml2.client import Saml2Client
from saml2.config import Config
import base64
file, metadata, sp = sys.argv[1:4]
own = {'entityid': 'https://second.test/sp', 'allow_unknown_attributes': True, 'metadata': {'local': [metadata]},
       'service': {'sp': {'endpoints': {'assertion_consumer_service': [(sp, BINDING_HTTP_POST)]}, 'allow_unsolicited': True,
                          'want_assertions_signed': True, 'want_response_signed': False}}}
client = Saml2Client(Config().load(own))
said = client.parse_authn_request_response(base64.b64encode(open(file, 'rb').read()).decode(), BINDING_HTTP_POST)
print(json.dumps({'issuer': said.issuer(), 'user': said.get_subject().text, 'said': said.ava}))
'''


def keys(state):
    """A key and its certificate, as an operator makes them."""
    crt, key = (os.path.join(state, f'saml.{kind}') for kind in ('crt', 'key'))
    sh('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', crt, '-subj', '/CN=first.test', '-days', '2')
    os.chmod(key, 0o600)
    return crt, key


def settings(crt, key, quoted):
    """`[saml]` of Keystone, or `[identity.saml]` of Allod."""
    show = lambda v: json.dumps(v, ensure_ascii=False) if quoted else str(v)
    return ''.join(f'{k} = {show(v)}\n' for k, v in {'certfile': crt, 'keyfile': key, **ABOUT}.items())


def document(cloud, path, body=None):
    """Status, headers and text."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(cloud.url + path, data, {'content-type': 'application/json'})
    try:
        with urllib.request.urlopen(request, context=cloud.context, timeout=60) as answer: return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as e: return e.code, dict(e.headers), e.read().decode()


def asked(token, sp='second'):
    return {'auth': {'identity': {'methods': ['token'], 'token': {'id': token}}, 'scope': {'service_provider': {'id': sp}}}}


def shape(element):
    """An element as far as both must say the same: of what varies that it is there, of times their form, of a signature its place."""
    if element.tag == DS + 'Signature': return 'signature'
    kept = {k: re.sub(r'[0-9]', '0', v) if 'ID' not in k and 'Index' not in k else '' for k, v in element.attrib.items() if k in VARIES}
    text, inner = (element.text or '').strip(), [shape(child) for child in element]
    if text.startswith('JSON:'): text = json.dumps(json.loads(text[5:]), sort_keys=True)
    if element.tag.endswith('X509Certificate'): text = ''.join(text.split())
    if element.tag.endswith('RelayState'): text = text[:-32]
    # Neither has an order of roles or groups.
    if element.get('Name') in ('openstack_roles', 'openstack_groups'): inner.sort(key=repr)
    return element.tag, sorted({**element.attrib, **kept}.items()), text, inner


def same(clouds, tokens, sp='second'):
    """Both answers of both clouds; Allod's."""
    found = {}
    for path in ('', '/ecp'):
        shapes = []
        for cloud, token in zip(clouds, tokens):
            status, headers, text = document(cloud, PATH + path, asked(token, sp))
            if status != 200: raise Failed(f'{cloud.name}: {path}: {status} {text}')
            # Keystone shows the bytes of its addresses as Python does: b'https://…'.
            told = {k.lower(): re.sub(r"^b'(.*)'$", r'\1', v) for k, v in headers.items()}
            shapes.append((shape(tree.fromstring(text.encode())), [told.get(k) for k in ('content-type', 'x-sp-url', 'x-auth-url')]))
            found[path] = text
        if shapes[0] != shapes[1]: raise Failed(f'{path}: {clouds[0].name} says {shapes[0]}, {clouds[1].name} {shapes[1]}')
    return found


def told_alike(clouds, tokens, unscoped):
    """Refusals: their status."""
    cases = {'no such service provider': lambda t, u: asked(t, 'third'), 'disabled': lambda t, u: asked(t, 'off'), 'unscoped': lambda t, u: asked(u),
             'no token': lambda t, u: asked('nonsense'), 'no scope': lambda t, u: {'auth': {'identity': {'token': {'id': t}}}},
             'a project': lambda t, u: {'auth': {'identity': {'token': {'id': t}}, 'scope': {'project': {'id': 'p'}}}}, 'nothing': lambda t, u: {}}
    for name, body in cases.items():
        answers = []
        for cloud, token, bare in zip(clouds, tokens, unscoped):
            status, _, text = document(cloud, PATH, body(token, bare))
            answers.append((status, json.loads(text)['error']['message']))
        if answers[0][0] != answers[1][0]: raise Failed(f'{name}: {answers}')


def verifies(text, crt, state):
    """Whether xmlsec1 believes a document by the certificate."""
    file = os.path.join(state, 'document.xml')
    with open(file, 'w') as f: f.write(text)
    try: sh('xmlsec1', '--verify', '--trusted-pem', crt, '--id-attr:ID', 'urn:oasis:names:tc:SAML:2.0:assertion:Assertion', file)
    except Failed: return False
    return True


def believed(found, crt, state):
    for path, text in found.items():
        if not verifies(text, crt, state): raise Failed(f'xmlsec1 does not believe {path or "the response"}: {text}')
        for change in (('Name="openstack_user"', 'Name="openstack_usex"'), ('>member<', '>admin<'), ('Recipient="http', 'Recipient="https')):
            if change[0] not in text: raise Failed(f'{change[0]} is not there: {text}')
            if verifies(text.replace(*change), crt, state): raise Failed(f'xmlsec1 believes a forgery: {change}')


def values(text):
    """The attributes of an assertion, and its issuer."""
    said = tree.fromstring(text.encode()).find(f'.//{SAML}Assertion')
    return {a.get('Name'): [v.text for v in a] for a in said.iter(f'{SAML}Attribute')}, said.findtext(f'{SAML}Issuer')


class Provider:
    """A service provider in front of a cloud."""

    def __init__(self, cloud, crt, state, secret):
        provider = self
        self.seen = None

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args): pass

            def do_POST(self):
                text = self.rfile.read(int(self.headers['content-length'])).decode()
                good = verifies(text, crt, state) and self.headers['content-type'] == 'application/vnd.paos+xml'
                provider.seen = values(text) if good else None
                self.send_response(303 if good else 403)
                self.send_header('content-length', '0')
                self.end_headers()

            def do_GET(self):
                said, issuer = provider.seen or ({}, '')
                headers = {'x-front-end-secret': secret, 'idp': issuer, **{k: ';'.join(v) for k, v in said.items() if k != 'openstack_groups'}}
                request = urllib.request.Request(f'{cloud.url}/v3/OS-FEDERATION/identity_providers/first/protocols/mapped/auth', headers=headers)
                try:
                    with urllib.request.urlopen(request, context=cloud.context, timeout=30) as answer: status, told, body = answer.status, answer.headers, answer.read()
                except urllib.error.HTTPError as e: status, told, body = e.code, e.headers, e.read()
                self.send_response(status)
                for name in ('content-type', 'x-subject-token'):
                    if told.get(name): self.send_header(name, told[name])
                self.send_header('content-length', str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self): self.server.shutdown()


def carry(python, cloud, crt, state, user, password, project):
    """The whole way by the unmodified keystoneauth: to a service provider in front of the same cloud, which takes it in as an identity provider's user."""
    secret = os.urandom(24).hex()
    provider = Provider(cloud, crt, state, secret)
    try:
        federation = '/OS-FEDERATION'
        names = ['openstack_user', 'openstack_user_domain', 'openstack_roles', 'openstack_project', 'idp']
        cloud.admin('PUT', f'{federation}/identity_providers/first', {'identity_provider': {
            'enabled': True, 'remote_ids': [ENTITY], 'front_end': {'secret': secret, 'attributes': names}}})
        rules = [{'local': [{'user': {'id': '{0}@{1}', 'name': '{0}@{1}'}, 'projects': [{'name': 'visitors', 'roles': [{'name': 'reader'}]}]}],
                  'remote': [{'type': 'openstack_user'}, {'type': 'openstack_user_domain'}, {'type': 'openstack_roles', 'any_one_of': ['member']}]}]
        cloud.admin('PUT', f'{federation}/mappings/first', {'mapping': {'rules': rules}})
        cloud.admin('PUT', f'{federation}/identity_providers/first/protocols/mapped', {'protocol': {'mapping_id': 'first', 'remote_id_attribute': 'idp'}})
        cloud.admin('PUT', f'{federation}/service_providers/loop', {'service_provider': {
            'enabled': True, 'sp_url': provider.url + '/Shibboleth.sso/SAML2/ECP', 'auth_url': provider.url + '/v3/OS-FEDERATION/identity_providers/first/protocols/mapped/auth'}})
        got = json.loads(sh(python, '-W', 'ignore', '-c', CARRY, cloud.url + '/v3', cloud.ca, user, password, project, 'loop', timeout=120))
        status, _, answer = cloud.request('GET', '/v3/auth/projects', headers={'x-auth-token': got['token']})
        names = [p['name'] for p in answer.get('projects', [])]
        if (status, names) != (200, ['visitors']): raise Failed(f'{status} {answer}')
        return provider.seen[0]
    finally: provider.stop()
