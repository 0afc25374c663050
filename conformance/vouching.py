"""What keystone_sidebyside.py asks of two clouds that vouch for their users in SAML (Keystone to Keystone).

The same user's assertion of both, compared element by element but for ids, times and signatures; xmlsec1 (Debian) and pysaml2 (PyPI) verify
Allod's. What Apache with mod_shib makes of it is in frontend.py.
"""
import json, os, re, urllib.error, urllib.request
import xml.etree.ElementTree as tree

from common import Failed, sh

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
