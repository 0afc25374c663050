#!/usr/bin/env python3
"""A real Apache in front of Allod: SAML by mod_shib and Kerberos by mod_auth_gssapi, configured as the operator guide says.

    conformance/frontend.py ALLOD [DIRECTORY WITH python, which has keystoneauth]

Two clouds. The first vouches for its users in SAML (Keystone to Keystone); in front of the second stands Apache with Shibboleth's
service provider, which reads it. The unmodified keystoneauth carries a user over; then come forgeries, replays and headers that the
user wrote. Beside it a key distribution centre of MIT Kerberos, whose tickets let the second cloud's own users in, by the unmodified
plugin `v3kerberos`. All of it from Debian's packages, on loopback, in one directory.
"""
import http.client, http.cookies, json, os, shutil, socket, ssl, subprocess, sys, tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import vouching
from common import Failed, open_, sh, until
from identityonly import Identity

ALLOD = sys.argv[1]
DEBIANS = '/usr/bin/python3'  # has keystoneauth and requests-kerberos from packages; those of PyPI want a compiler
PYTHON = os.path.join(sys.argv[2], 'python') if len(sys.argv) > 2 else DEBIANS
REALM = 'ALLOD.TEST'
MODULES = 'mpm_event authn_core authz_core authz_user auth_gssapi headers proxy proxy_http ssl shib'
WAY_IN = '/identity/v3/OS-FEDERATION/identity_providers/first/protocols/mapped/auth'
SAID = ['openstack_user', 'openstack_user_domain', 'openstack_roles', 'openstack_project', 'openstack_groups', 'first_idp']
CARRY = '''
import json, sys
from keystoneauth1 import session
from keystoneauth1.identity import v3
url, ca, user, password, project = sys.argv[1:6]
there = v3.Keystone2Keystone(v3.Password(auth_url=url, user_id=user, password=password, project_id=project), 'second')
s = session.Session(verify=ca)
print(json.dumps({'token': there.get_token(s)}))
'''
TICKET = '''
import json, sys
from keystoneauth1 import loading, session
url, ca, project = sys.argv[1:4]
plugin = loading.get_plugin_loader('v3kerberos').load_from_options(auth_url=url, project_id=project)
s = session.Session(verify=ca, additional_headers={'X-Remote-User': 'admin', 'X-Remote-Domain': 'Elsewhere'})
print(json.dumps({'token': plugin.get_token(s), 'user': plugin.get_user_id(s)}))
'''


def step(text): print(f'{text} ... ', end='', flush=True)
def passed(): print('PASS', flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def listens(port):
    with socket.create_connection(('127.0.0.1', port), 2): return True


class Programs:
    """What was started, and ends with us."""

    def __init__(self, dir): self.dir, self.started = dir, []

    def start(self, name, *command, **env):
        log = open(f'{self.dir}/{name}.log', 'w')
        p = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.dir, env={**os.environ, **env})
        self.started.append((name, p))
        return p

    def said(self): return ''.join(f'\n--- {file}\n{open_(os.path.join(self.dir, file))[-1500:]}' for file in sorted(os.listdir(self.dir)) if file.endswith('.log'))

    def stop(self):
        for _, p in reversed(self.started): p.terminate()
        for _, p in reversed(self.started):
            try: p.wait(20)
            except subprocess.TimeoutExpired: p.kill(); p.wait()


class Kerberos:
    """A key distribution centre of its own."""

    def __init__(self, programs):
        self.dir, self.port = programs.dir, free_port()
        self.env = {'KRB5_CONFIG': f'{self.dir}/krb5.conf', 'KRB5_KDC_PROFILE': f'{self.dir}/kdc.conf', 'KRB5CCNAME': f'FILE:{self.dir}/tickets'}
        with open(self.env['KRB5_CONFIG'], 'w') as f: f.write(f'''[libdefaults]
default_realm = {REALM}
dns_lookup_kdc = false
dns_lookup_realm = false
dns_canonicalize_hostname = false
rdns = false
udp_preference_limit = 1
[realms]
{REALM} = {{
  kdc = 127.0.0.1:{self.port}
}}
[domain_realm]
localhost = {REALM}
''')
        with open(self.env['KRB5_KDC_PROFILE'], 'w') as f: f.write(f'''[kdcdefaults]
kdc_listen = 127.0.0.1:{self.port}
kdc_tcp_listen = 127.0.0.1:{self.port}
[realms]
{REALM} = {{
  database_name = {self.dir}/principals
  key_stash_file = {self.dir}/stash
}}
[logging]
kdc = FILE:{self.dir}/kdc-said.log
''')
        self.keytab = f'{self.dir}/http.keytab'
        self.run('kdb5_util', 'create', '-s', '-r', REALM, '-P', os.urandom(12).hex())
        for line in (f'addprinc -randkey HTTP/localhost@{REALM}', f'ktadd -k {self.keytab} HTTP/localhost@{REALM}'): self.run('kadmin.local', '-r', REALM, '-q', line)
        programs.start('kdc', 'krb5kdc', '-n', '-r', REALM, '-P', f'{self.dir}/kdc.pid', **self.env)
        until('the key distribution centre listens', lambda: listens(self.port), 30)

    def run(self, *command, **kw): return sh(*command, env={**os.environ, **self.env, 'PATH': os.environ['PATH'] + ':/usr/sbin:/usr/bin'}, **kw)

    def person(self, name, password): self.run('kadmin.local', '-r', REALM, '-q', f'addprinc -pw {password} {name}@{REALM}')

    def ticket(self, name, password): self.run('/usr/bin/kinit', f'{name}@{REALM}', input=password + '\n')


def shibboleth(programs, entity, metadata):
    """The service provider's daemon and what mod_shib reads."""
    d = programs.dir
    for use in ('signing', 'encrypt'):
        sh('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', f'{d}/sp-{use}.key', '-out', f'{d}/sp-{use}.crt', '-subj', '/CN=second.test', '-days', '2')
    names = ''.join(f'<Attribute name="{name}" id="{name}"/>' for name in SAID if name != 'first_idp')
    with open(f'{d}/attribute-map.xml', 'w') as f: f.write(f'<Attributes xmlns="urn:mace:shibboleth:2.0:attribute-map">{names}</Attributes>')
    for part in ('shibd', 'native'):
        with open(f'{d}/{part}.logger', 'w') as f: f.write(f'''log4j.rootCategory=INFO, to
log4j.appender.to=org.apache.log4j.FileAppender
log4j.appender.to.fileName={d}/{part}-said.log
log4j.appender.to.layout=org.apache.log4j.PatternLayout
log4j.appender.to.layout.ConversionPattern=%d %p %c: %m%n
''')
    with open(f'{d}/shibboleth2.xml', 'w') as f: f.write(f'''<SPConfig xmlns="urn:mace:shibboleth:3.0:native:sp:config" clockSkew="180">
  <OutOfProcess logger="{d}/shibd.logger"/>
  <InProcess logger="{d}/native.logger"/>
  <UnixListener address="{d}/shibd.sock"/>
  <ApplicationDefaults entityID="{entity}" REMOTE_USER="openstack_user">
    <Sessions lifetime="3600" timeout="3600" relayState="ss:mem" checkAddress="false" handlerSSL="true" cookieProps="https" redirectLimit="exact">
      <SSO ECP="true" entityID="{vouching.ENTITY}">SAML2</SSO>
    </Sessions>
    <Errors supportContext="nobody"/>
    <MetadataProvider type="XML" validate="false" path="{metadata}"/>
    <AttributeExtractor type="XML" validate="false" reloadChanges="false" path="{d}/attribute-map.xml"/>
    <CredentialResolver type="File" use="signing" key="{d}/sp-signing.key" certificate="{d}/sp-signing.crt"/>
    <CredentialResolver type="File" use="encryption" key="{d}/sp-encrypt.key" certificate="{d}/sp-encrypt.crt"/>
  </ApplicationDefaults>
  <SecurityPolicyProvider type="XML" validate="false" path="/etc/shibboleth/security-policy.xml"/>
  <ProtocolProvider type="XML" validate="false" reloadChanges="false" path="/etc/shibboleth/protocols.xml"/>
</SPConfig>
''')
    programs.start('shibd', 'shibd', '-F', '-f', '-c', f'{d}/shibboleth2.xml', '-p', f'{d}/shibd.pid')
    until('shibd listens', lambda: os.path.exists(f'{d}/shibd.sock'), 60)


def apache(programs, port, second, kerberos, secrets):
    d, behind = programs.dir, second.base.replace('127.0.0.1', 'localhost')  # mod_ssl compares names, not addresses
    sh('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', f'{d}/front.key', '-out', f'{d}/front.crt', '-subj', '/CN=localhost', '-days', '2',
       '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1')
    headers = ''.join(f'  RequestHeader set {name} "expr=%{{reqenv:{"Shib-Identity-Provider" if name == "first_idp" else name}}}"\n' for name in SAID)
    account = 'User www-data\nGroup www-data\n' if os.getuid() == 0 else ''
    with open(f'{d}/apache.conf', 'w') as f: f.write(f'''ServerRoot {d}
ServerName localhost
PidFile {d}/apache.pid
ErrorLog {d}/apache-errors.log
DefaultRuntimeDir {d}
{account}{''.join(f"LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so{chr(10)}" for m in MODULES.split() if m != 'shib')}LoadModule mod_shib /usr/lib/apache2/modules/mod_shib.so
ShibConfig {d}/shibboleth2.xml
ShibCompatValidUser On
Listen 127.0.0.1:{port}
UseCanonicalName Off
SSLEngine on
SSLCertificateFile {d}/front.crt
SSLCertificateKeyFile {d}/front.key
SSLProxyEngine on
SSLProxyVerify require
SSLProxyCACertificateFile {second.ca}
SSLProxyCheckPeerName on
<Location "/">
  Require all granted
</Location>
<LocationMatch "^/identity/v3/(auth/)?OS-FEDERATION/identity_providers/first/protocols/mapped/(auth|websso)$">
  AuthType shibboleth
  ShibRequestSetting requireSession 1
  Require shib-session
  RequestHeader set X-Front-End-Secret "{secrets['saml']}"
{headers}</LocationMatch>
<Location "/krb/identity/v3/auth/tokens">
  AuthType GSSAPI
  AuthName "{REALM}"
  GssapiCredStore keytab:{kerberos.keytab}
  GssapiLocalName On
  Require valid-user
  RequestHeader set X-Front-End-Secret "{secrets['external']}"
  RequestHeader set X-Remote-User "expr=%{{REMOTE_USER}}"
  RequestHeader unset X-Remote-Domain
</Location>
ProxyPass /Shibboleth.sso !
ProxyPass /krb/ {behind}/
ProxyPass / {behind}/
''')
    if os.getuid() == 0: shutil.chown(kerberos.keytab, 'www-data')
    programs.start('apache', 'apache2', '-f', f'{d}/apache.conf', '-D', 'FOREGROUND', **kerberos.env)
    until('Apache listens', lambda: listens(port), 30)


class Browser:
    """Requests to the front end, with its cookies, as a user may write them."""

    def __init__(self, port, ca): self.port, self.context, self.cookies = port, ssl.create_default_context(cafile=ca), http.cookies.SimpleCookie()

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPSConnection('localhost', self.port, context=self.context, timeout=60)
        try:
            cookie = '; '.join(f'{m.key}={m.value}' for m in self.cookies.values())
            connection.request(method, path, body, {**({'Cookie': cookie} if cookie else {}), **{k.replace('__', '-'): v for k, v in headers.items()}})
            answer = connection.getresponse()
            text = answer.read().decode(errors='replace')
            for line in answer.headers.get_all('set-cookie') or []: self.cookies.load(line)
            return answer.status, answer.headers, text
        finally: connection.close()


def assertion(first, user, password, project):
    """An assertion for the second cloud, as keystoneauth gets it."""
    identity = {'methods': ['password'], 'password': {'user': {'id': user, 'password': password}}}
    status, headers, body = first.request('POST', '/v3/auth/tokens', {'auth': {'identity': identity, 'scope': {'project': {'id': project}}}})
    if status != 201: raise Failed(f'login: {status} {body}')
    status, _, text = vouching.document(first, vouching.PATH + '/ecp', vouching.asked({k.lower(): v for k, v in headers.items()}['x-subject-token']))
    if status != 200: raise Failed(f'no assertion: {status} {text}')
    return text


def told(second, token):
    status, _, body = second.request('GET', '/v3/auth/tokens', headers={'x-auth-token': second.token, 'x-subject-token': token})
    if status != 200: raise Failed(f'the token is not good: {status} {body}')
    return body['token']


def prepare(first, second, port, saml):
    """People and rights; what came of them."""
    made = {'password': 'pw-ada', 'secret': saml}
    made['project'] = first.make('project', name='demo', domain_id='default')
    for key, name in {'ada': 'ada', 'strange': vouching.STRANGE}.items():
        made[key] = first.make('user', name=name, domain_id='default', password=made['password'])
        first.admin('PUT', f'/projects/{made["project"]}/users/{made[key]}/roles/{first.role("member")}')
    front = f'https://localhost:{port}'
    first.admin('PUT', '/OS-FEDERATION/service_providers/second', {'service_provider': {
        'enabled': True, 'sp_url': f'{front}/Shibboleth.sso/SAML2/ECP', 'auth_url': front + WAY_IN}})
    second.admin('PUT', '/OS-FEDERATION/identity_providers/first', {'identity_provider': {
        'enabled': True, 'remote_ids': [vouching.ENTITY], 'front_end': {'secret': saml, 'attributes': SAID}}})
    rules = [{'local': [{'user': {'id': '{0}@first', 'name': '{0}'}, 'projects': [{'name': 'visitors', 'roles': [{'name': 'reader'}]}]}],
              'remote': [{'type': 'openstack_user'}, {'type': 'openstack_user_domain'}, {'type': 'openstack_roles', 'any_one_of': ['member']}]}]
    second.admin('PUT', '/OS-FEDERATION/mappings/first', {'mapping': {'rules': rules}})
    second.admin('PUT', '/OS-FEDERATION/identity_providers/first/protocols/mapped', {'protocol': {'mapping_id': 'first', 'remote_id_attribute': 'first_idp'}})
    made['home'] = second.make('project', name='home', domain_id='default')
    made['grace'] = second.make('user', name='grace', domain_id='default')
    second.admin('PUT', f'/projects/{made["home"]}/users/{made["grace"]}/roles/{second.role("member")}')
    return made


def by_saml(first, second, port, bundle, made):
    step('keystoneauth (Keystone2Keystone) carries a user through mod_shib')
    line = lambda who: (PYTHON, '-W', 'ignore', '-c', CARRY, first.url + '/v3', bundle, made[who], made['password'], made['project'])
    for who, name in (('ada', 'ada'), ('strange', vouching.STRANGE)):
        token = told(second, json.loads(sh(*line(who), timeout=120))['token'])
        if token['user']['name'] != name or token['methods'] != ['mapped']: raise Failed(f'{name!r} came as {token["user"]}')
    passed()

    ecp, paos = '/Shibboleth.sso/SAML2/ECP', 'application/vnd.paos+xml'
    step('who has no session is let in by nobody, whatever the headers say')
    forged = {'openstack_user': 'admin', 'openstack_user_domain': 'Default', 'openstack_roles': 'member', 'first_idp': vouching.ENTITY, 'Shib__Identity__Provider': vouching.ENTITY}
    status, headers, text = Browser(port, bundle).ask('GET', WAY_IN, **forged)
    # Where people of an identity provider come, mod_shib sends them there; one of Keystone to Keystone has no page for them.
    if status < 300 or 'x-subject-token' in headers or 'shibsp' not in text: raise Failed(f'{status} {text[:600]}')
    status, _, body = second.request('GET', WAY_IN.removeprefix('/identity'), headers={k.replace('__', '-'): v for k, v in forged.items()})
    if status != 401: raise Failed(f'past the front end: {status} {body}')
    passed()

    step('an assertion is believed once; what was changed in it, never')
    new = lambda: assertion(first, made['ada'], made['password'], made['project'])
    for change in (('>ada<', '>admin<'), ('Recipient="https', 'Recipient="http'), ('>member<', '>admin<')):
        text = new()  # mod_shib remembers what it refused
        if change[0] not in text: raise Failed(f'{change[0]} is not in the assertion')
        browser = Browser(port, bundle)
        status, _, _ = browser.ask('POST', ecp, text.replace(*change).encode(), Content__Type=paos)
        if status in (302, 303) or '_shibsession' in str(browser.cookies): raise Failed(f'a forgery is believed: {change}: {status}')
    ada, text = Browser(port, bundle), new()
    status, _, answer = ada.ask('POST', ecp, text.encode(), Content__Type=paos)
    if status not in (302, 303) or '_shibsession' not in str(ada.cookies): raise Failed(f'not believed: {status} {answer[:500]}')
    again = Browser(port, bundle)
    status, _, _ = again.ask('POST', ecp, text.encode(), Content__Type=paos)
    if status in (302, 303) or '_shibsession' in str(again.cookies): raise Failed(f'believed twice: {status}')
    passed()

    step('whose session it is says mod_shib, whatever the headers say')
    for headers in (forged, {'OPENSTACK_USER': 'admin'}, {'openstack__user': 'admin'}, {'X__Front__End__Secret': 'f' * 40}, {'X__Front__End__Secret': made['secret'], **forged}):
        status, answer, text = ada.ask('GET', WAY_IN, **headers)
        if status != 201: raise Failed(f'{headers}: {status} {text}')
        token = told(second, answer['x-subject-token'])
        if token['user']['name'] != 'ada': raise Failed(f'{headers}: came as {token["user"]}')
    passed()


def by_ticket(second, port, bundle, kerberos, made):
    step('keystoneauth (v3kerberos) logs in with a ticket; the name is that of the ticket')
    for name in ('grace', 'stranger'): kerberos.person(name, 'pw-of-' + name)
    line = (DEBIANS, '-W', 'ignore', '-c', TICKET, f'https://localhost:{port}/krb/identity/v3', bundle, made['home'])
    kerberos.ticket('grace', 'pw-of-grace')
    got = json.loads(kerberos.run(*line, timeout=120))
    token = told(second, got['token'])
    if token['user']['id'] != made['grace'] or token['project']['id'] != made['home'] or token['methods'] != ['external']: raise Failed(f'came as {token}')
    passed()

    step('a stranger\'s ticket, none, and a nonsensical one let nobody in')
    kerberos.ticket('stranger', 'pw-of-stranger')
    answer = subprocess.run(line, env={**os.environ, **kerberos.env}, capture_output=True, text=True, timeout=120)
    if answer.returncode == 0 or 'HTTP 401' not in answer.stderr: raise Failed(f'{answer.returncode} {answer.stdout} {answer.stderr[-500:]}')
    body = json.dumps({'auth': {'identity': {'methods': ['kerberos'], 'kerberos': {}}}})
    for headers in ({}, {'Authorization': 'Negotiate YII='}, {'X__Remote__User': 'grace'}):
        for place in ('/krb/identity', '/identity'):
            status, _, text = Browser(port, bundle).ask('POST', place + '/v3/auth/tokens', body, Content__Type='application/json', **headers)
            if status != 401: raise Failed(f'{place} {headers}: {status} {text}')
    passed()


def main():
    os.environ['PATH'] += ':/usr/sbin'
    with tempfile.TemporaryDirectory(prefix='allod-frontend-') as state:
        os.chmod(state, 0o755)  # Apache's processes are www-data
        programs, clouds = Programs(os.path.join(state, 'front')), []
        os.mkdir(programs.dir)
        try:
            port, secrets = free_port(), {'saml': os.urandom(24).hex(), 'external': os.urandom(24).hex()}
            file = os.path.join(state, 'external')
            with open(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600), 'w') as f: f.write(secrets['external'])
            saml = vouching.keys(state)
            clouds.append(Identity(ALLOD, state, 'first', f'[identity.saml]\n{vouching.settings(*saml, quoted=True)}'))
            clouds.append(Identity(ALLOD, state, 'second', '[identity.external]\nuser_header = "X-Remote-User"\ndomain_header = "X-Remote-Domain"\n'
                                   f'secret_file = "{file}"\n'))
            first, second = clouds
            made = prepare(first, second, port, secrets['saml'])
            metadata = f'{programs.dir}/first.xml'
            with open(metadata, 'w') as f: f.write(vouching.document(first, vouching.METADATA)[2])
            kerberos = Kerberos(programs)
            shibboleth(programs, 'https://second.test/shibboleth', metadata)
            apache(programs, port, second, kerberos, secrets)
            bundle = os.path.join(state, 'all.crt')
            with open(bundle, 'w') as f: f.write(open(first.ca).read() + open(f'{programs.dir}/front.crt').read())
            by_saml(first, second, port, bundle, made)
            by_ticket(second, port, bundle, kerberos, made)
        except BaseException:
            print(programs.said(), flush=True)
            raise
        finally:
            programs.stop()
            for cloud in clouds: cloud.stop()


if __name__ == '__main__':
    try: main()
    except Failed as e: sys.exit(f'FAIL: {e}')
