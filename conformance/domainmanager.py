#!/usr/bin/env python3
"""The domain-manager check of the Sovereign Cloud Stack (scs-0302-v1): what a manager of a domain may do, and may not.

    conformance/domainmanager.py ALLOD [--prefix scs-test-]          starts an identity service of its own
    conformance/domainmanager.py --clouds CLOUDS_YAML                takes a cloud that runs (entry `allod-admin` or `admin`)

The operator's part comes first: two empty domains, in each a user with a password and the role `manager` on it. Then the managers A
and B log in and do what the check of scs-0302 does, in its order (logins, users, projects, groups, with a cleanup between), by the
requests an SDK makes: a look-up by name asks `GET /things/NAME` and goes on with `?name=` after a 404, 403 or 400 (Allod answers
403 where the manager could not see such a thing if it were there). "No effect" means that the status does not matter, the effect does. One line for each assertion; the first that fails ends the run.
"""
import argparse, json, os, ssl, subprocess, sys, tempfile, urllib.error, urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import Failed
from identityonly import Identity

REFUSED = (403,)
HIDDEN = (403, 404)


class Check:
    def __init__(self): self.passed, self.requests, self.logins = 0, 0, 0

    def that(self, text, good, found=''):
        if not good: raise Failed(f'{text}: {found}')
        self.passed += 1
        print(f'{text}: PASS', flush=True)


class Person:
    """Somebody with a token, by plain requests."""

    def __init__(self, check, url, ca):
        self.check, self.url, self.token = check, url.rstrip('/'), None
        self.context = ssl.create_default_context(cafile=ca or None)

    def ask(self, method, path, body=None):
        headers = {'content-type': 'application/json', **({'x-auth-token': self.token} if self.token else {})}
        data = None if body is None else json.dumps(body).encode()
        self.check.requests += 1
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers, method=method), context=self.context, timeout=60) as a:
                return a.status, {k.lower(): v for k, v in a.headers.items()}, json.loads(a.read() or b'{}')
        except urllib.error.HTTPError as e:
            text = e.read()
            return e.code, {}, json.loads(text) if text.startswith(b'{') else {}

    def status(self, method, path, body=None): return self.ask(method, path, body)[0]

    def login(self, user, password, user_domain, scope):
        identity = {'methods': ['password'], 'password': {'user': {'name': user, 'password': password, 'domain': user_domain}}}
        self.check.logins += 1
        self.token = None
        status, headers, body = self.ask('POST', '/auth/tokens', {'auth': {'identity': identity, 'scope': scope}})
        if status == 201: self.token = headers['x-subject-token']
        return status, body.get('token', {})

    def need(self, want, method, path, body=None):
        status, _, answer = self.ask(method, path, body)
        if status != want: raise Failed(f'{method} {path}: {status}, not {want}: {answer}')
        return answer

    def list(self, kind, **query):
        path = f'/{kind}' + ('?' + '&'.join(f'{k}={v}' for k, v in query.items()) if query else '')
        return self.need(200, 'GET', path)[kind.split('/')[-1]]

    def by_name(self, kind, name):
        """As an SDK finds: the status of the look-up by id, then what has the name."""
        return self.status('GET', f'/{kind}/{name}'), self.list(kind, name=name)

    def assignments(self, group, **scope):
        (kind, target), = scope.items()
        return self.need(200, 'GET', f'/role_assignments?group.id={group}&scope.{kind}.id={target}')['role_assignments']


class Manager(Person):
    def __init__(self, check, url, ca, name, domain):
        super().__init__(check, url, ca)
        self.name, self.domain, self.password = name, domain, f'pw-of-{name}'

    def make(self, kind, **fields): return self.need(201, 'POST', f'/{kind}s', {kind: fields})[kind]['id']

    def cleanup(self, prefix):
        for kind in ('groups', 'projects', 'users'):
            for thing in self.list(kind, domain_id=self.domain['id']):
                if thing['name'].startswith(prefix) and thing['name'] != self.name: self.need(204, 'DELETE', f'/{kind}/{thing["id"]}')


def logins(check, managers):
    for m in managers:
        status, token = m.login(m.name, m.password, {'name': m.domain['name']}, {'domain': {'name': m.domain['name']}})
        good = status == 201 and token.get('domain', {}).get('id') == m.domain['id'] and 'project' not in token and token.get('catalog')
        check.that(f'L1 {m.name}: a token of the domain, with the catalog, without a project', good, (status, token.keys()))
        status, found = m.by_name('users', m.name)
        check.that(f'L2 {m.name}: finds the own user by name', status in HIDDEN and [u['name'] for u in found] == [m.name], (status, found))
        status, found = m.by_name('domains', m.domain['name'])
        check.that(f'L3 {m.name}: finds the own domain by name', status in HIDDEN and [d['id'] for d in found] == [m.domain['id']], (status, found))


def users(check, a, b, member, prefix):
    own, other = a.domain['id'], b.domain['id']
    user = a.make('user', name=f'{prefix}user-a', domain_id=own)
    check.that('U1 a manager makes a user', user)
    status, found = a.by_name('users', f'{prefix}user-a')
    check.that('U2 finds it by name', status in HIDDEN and [u['id'] for u in found] == [user], (status, found))
    check.that('U2 finds it by id', a.status('GET', f'/users/{user}') == 200)
    changed = a.need(200, 'PATCH', f'/users/{user}', {'user': {'email': 'CHANGED-MAIL'}})['user'].get('email')
    check.that('U3 changes it, and the mail address is told', changed == 'CHANGED-MAIL', changed)
    shown = a.need(200, 'GET', f'/users/{user}')['user'].get('email')
    check.that('U3 the mail address is told later too', shown == 'CHANGED-MAIL', shown)
    foreign = b.make('user', name=f'{prefix}user-b', domain_id=other)
    listed = a.list('users')
    check.that('U4 a list without a filter has users of the own domain only', listed and {u['domain_id'] for u in listed} == {own}, listed)
    grant = f'/domains/{own}/users/{user}/roles/{member}'
    check.that('U5 grants a role on the domain', a.status('PUT', grant) == 204 and a.status('HEAD', grant) == 204)
    check.that('U5 revokes it', a.status('DELETE', grant) == 204 and a.status('HEAD', grant) == 404)
    check.that('U6 deletes the user', a.status('DELETE', f'/users/{user}') == 204)
    refused = lambda text, method, path, body=None, want=REFUSED: (
        lambda s: check.that(text, s in want, s))(a.status(method, path, body))
    refused('U7 makes no user without naming the domain', 'POST', '/users', {'user': {'name': f'{prefix}user-x'}})
    refused('U8 makes no user in a foreign domain', 'POST', '/users', {'user': {'name': f'{prefix}user-x', 'domain_id': other}})
    refused('U9 sees no foreign user by id', 'GET', f'/users/{foreign}', want=HIDDEN)
    check.that('U9 sees no foreign user in a list', a.list('users', name=foreign) == [] == a.list('users', name=f'{prefix}user-b'))
    refused('U10 changes no foreign user', 'PATCH', f'/users/{foreign}', {'user': {'email': 'CHANGED-MAIL'}})
    refused('U10 deletes no foreign user', 'DELETE', f'/users/{foreign}')
    for whose, text in ((user, 'an own (deleted) user'), (foreign, 'a foreign user')):
        path = f'/domains/{other}/users/{whose}/roles/{member}'
        a.status('PUT', path)
        check.that(f'U11 grants nothing on a foreign domain to {text}', a.status('HEAD', path) != 204 and b.status('HEAD', path) != 204)
    path = f'/domains/{other}/users/{foreign}/roles/{member}'
    b.need(204, 'PUT', path)
    a.status('DELETE', path)
    check.that('U12 revokes nothing of a foreign user', b.status('HEAD', path) == 204)


def projects(check, a, b, member, prefix):
    own, other = a.domain['id'], b.domain['id']
    user, foreign_user = (m.make('user', name=f'{prefix}user-{n}', domain_id=m.domain['id']) for m, n in ((a, 'a'), (b, 'b')))
    project = a.make('project', name=f'{prefix}project-a', domain_id=own)
    check.that('P1 makes a project', project)
    status, found = a.by_name('projects', f'{prefix}project-a')
    check.that('P2 finds it by name', status in HIDDEN and [p['id'] for p in found] == [project], (status, found))
    check.that('P2 finds it by id', a.status('GET', f'/projects/{project}') == 200)
    a.need(200, 'PATCH', f'/projects/{project}', {'project': {'description': 'CHANGED'}})
    shown = a.need(200, 'GET', f'/projects/{project}')['project']['description']
    check.that('P2 changes it', shown == 'CHANGED', shown)
    grant = f'/projects/{project}/users/{user}/roles/{member}'
    check.that('P3 grants a role on it', a.status('PUT', grant) == 204 and a.status('HEAD', grant) == 204)
    found = a.list(f'users/{user}/projects')
    check.that('P4 lists the projects of a user', [p['id'] for p in found] == [project], found)
    check.that('P5 revokes the role', a.status('DELETE', grant) == 204 and a.status('HEAD', grant) == 404)
    check.that('P5 deletes the project', a.status('DELETE', f'/projects/{project}') == 204)
    name = f'{prefix}project-x'
    for text, body in (('without naming the domain', {'name': name}), ('in a foreign domain', {'name': name, 'domain_id': other})):
        status = a.status('POST', '/projects', {'project': body})
        check.that(f'P6 makes no project {text}', status in REFUSED, status)
    foreign = b.make('project', name=f'{prefix}project-b', domain_id=other)
    status, found = a.by_name('projects', f'{prefix}project-b')
    check.that('P7 finds no foreign project by name', status in HIDDEN and found == [], (status, found))
    status = a.status('GET', f'/projects/{foreign}')
    check.that('P7 finds no foreign project by id', status in REFUSED and a.list('projects', name=foreign) == [], status)
    status = a.status('PATCH', f'/projects/{foreign}', {'project': {'description': 'CHANGED'}})
    check.that('P8 changes no foreign project', status in REFUSED, status)
    status = a.status('DELETE', f'/projects/{foreign}')
    check.that('P8 deletes no foreign project', status in REFUSED, status)
    for where, who, text in ((foreign, foreign_user, 'a foreign project to a foreign user'), (project, foreign_user, 'an own (deleted) project to a foreign user'),
                             (foreign, user, 'a foreign project to an own user')):
        path = f'/projects/{where}/users/{who}/roles/{member}'
        a.status('PUT', path)
        check.that(f'P9 grants nothing on {text}', b.status('HEAD', path) != 204)
    path = f'/projects/{foreign}/users/{foreign_user}/roles/{member}'
    b.need(204, 'PUT', path)
    a.status('DELETE', path)
    check.that('P10 revokes nothing on a foreign project', b.status('HEAD', path) == 204)
    status = a.status('GET', f'/users/{foreign_user}/projects')
    check.that('P11 lists no projects of a foreign user', status in REFUSED, status)


def groups(check, a, b, member, prefix):
    own, other = a.domain['id'], b.domain['id']
    user, foreign_user = (m.make('user', name=f'{prefix}user-{n}', domain_id=m.domain['id']) for m, n in ((a, 'a'), (b, 'b')))
    name = f'{prefix}group-a'
    for text, body in (('without naming the domain', {'name': name}), ('in a foreign domain', {'name': name, 'domain_id': other})):
        status = a.status('POST', '/groups', {'group': body})
        check.that(f'G1 makes no group {text}', status in REFUSED, status)
    group = a.make('group', name=name, domain_id=own)
    check.that('G1 makes a group', group)
    check.that('G2 a list without a filter has no foreign groups', b.list('groups') == [])
    for method, body in (('PATCH', {'group': {'description': 'CHANGED'}}), ('DELETE', None)):
        status = b.status(method, f'/groups/{group}', body)
        check.that(f'G3 {"changes" if body else "deletes"} no foreign group', status in REFUSED, status)
    foreign = b.make('group', name=f'{prefix}group-b', domain_id=other)
    member_path = lambda g, u: f'/groups/{g}/users/{u}'
    status = a.status('HEAD', member_path(group, user))
    check.that('G4 is told that an own user is not in an own group', status == 404, status)
    for g, u, text in ((group, foreign_user, 'a foreign user'), (foreign, user, 'a foreign group'), (foreign, foreign_user, 'a foreign user and group')):
        status = a.status('HEAD', member_path(g, u))
        check.that(f'G5 is told nothing about {text}', status in REFUSED, status)
    good = a.status('PUT', member_path(group, user)) == 204 and a.status('HEAD', member_path(group, user)) == 204
    check.that('G6 puts an own user into an own group', good)
    for g, u, text in ((foreign, user, 'an own user into a foreign group'), (group, foreign_user, 'a foreign user into an own group'),
                       (foreign, foreign_user, 'a foreign user into a foreign group')):
        status = a.status('PUT', member_path(g, u))
        check.that(f'G7 does not put {text}', status in REFUSED, status)
    found = a.list(f'groups/{group}/users')
    check.that('G8 lists the users of a group', [u['name'] for u in found] == [f'{prefix}user-a'], found)
    status, found = a.by_name('roles', 'admin')
    check.that('G9 finds the role admin by name', status in HIDDEN and [r['name'] for r in found] == ['admin'], (status, found))
    admin = found[0]['id']
    first, second = (a.make('project', name=f'{prefix}project-{n}', domain_id=own) for n in ('1', '2'))
    for kind, target in (('project', second), ('domain', own)):
        a.status('PUT', f'/{kind}s/{target}/groups/{group}/roles/{admin}')
        check.that(f'G10 does not grant admin on a {kind}', a.assignments(group, **{kind: target}) == [])
    both = (('domain', own), ('project', first))
    exactly = lambda kind, target: [x['role']['id'] for x in a.assignments(group, **{kind: target})]
    for kind, target in both:
        a.need(204, 'PUT', f'/{kind}s/{target}/groups/{group}/roles/{member}')
        check.that(f'G11 grants a role on a {kind} to a group', exactly(kind, target) == [member])
    for kind, target in both:
        b.status('DELETE', f'/{kind}s/{target}/groups/{group}/roles/{member}')
        check.that(f'G12 does not revoke a foreign grant on a {kind}', exactly(kind, target) == [member])
    for kind, target in both:
        a.need(204, 'DELETE', f'/{kind}s/{target}/groups/{group}/roles/{member}')
        check.that(f'G13 revokes the grant on a {kind}', exactly(kind, target) == [])
    for method, path, text in (('GET', f'/groups/{group}/users', 'lists no users of a foreign group'),
                               ('DELETE', member_path(group, user), 'takes no user out of a foreign group'), ('DELETE', f'/groups/{group}', 'deletes no foreign group')):
        status = b.status(method, path)
        check.that(f'G14 {text}', status in REFUSED, status)
    extra = a.make('group', name=f'{prefix}group-a2', domain_id=own)
    for kind, target in (('project', first), ('domain', own)):
        b.status('PUT', f'/{kind}s/{target}/groups/{extra}/roles/{member}')
        check.that(f'G15 grants nothing on a foreign {kind} to a foreign group', a.assignments(extra, **{kind: target}) == [])
    check.that('G16 finds a group by id', a.status('GET', f'/groups/{group}') == 200)
    check.that('G16 deletes it', a.status('DELETE', f'/groups/{group}') == 204)
    status = a.status('GET', f'/groups/{group}')
    check.that('G16 does not find it again', status in HIDDEN and a.list('groups', name=group) == [], status)


def prepare(root, prefix):
    """The operator's part: two empty domains with a manager each."""
    made, role = [], root.list('roles', name='manager')
    if not role: raise Failed('there is no role manager')
    for letter in 'ab':
        domain = root.need(201, 'POST', '/domains', {'domain': {'name': f'{prefix}domain-{letter}'}})['domain']
        made.append(Manager(root.check, root.url, None, f'{prefix}manager-{letter}', domain))
        made[-1].context = root.context
        body = {'name': made[-1].name, 'domain_id': domain['id'], 'password': made[-1].password}
        user = root.need(201, 'POST', '/users', {'user': body})['user']['id']
        root.need(204, 'PUT', f'/domains/{domain["id"]}/users/{user}/roles/{role[0]["id"]}')
    return made


def run(root, prefix):
    check, managers = root.check, []
    try:
        a, b = managers = prepare(root, prefix)
        check.requests = check.logins = 0
        logins(check, managers)
        member = a.list('roles', name='member')[0]['id']
        for part in (users, projects, groups):
            for m in managers: m.cleanup(prefix)
            part(check, a, b, member, prefix)
        for m in managers: m.cleanup(prefix)
    finally:
        for m in managers:
            root.ask('PATCH', f'/domains/{m.domain["id"]}', {'domain': {'enabled': False}})
            root.ask('DELETE', f'/domains/{m.domain["id"]}')
    print(f'{check.passed} assertions passed, {check.requests} requests, {check.logins} logins')


def administrator(check, clouds):
    code = 'import json,sys,yaml;print(json.dumps(yaml.safe_load(open(sys.argv[1]))["clouds"]))'
    python = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), '.venv/bin/python')
    known = json.loads(subprocess.run([python, '-c', code, clouds], capture_output=True, text=True, check=True).stdout)
    cloud = known.get('allod-admin') or known['admin']
    auth, root = cloud['auth'], None
    root = Person(check, auth['auth_url'], cloud.get('cacert'))
    scope = {'project': {'name': auth['project_name'], 'domain': {'name': auth.get('project_domain_name', 'Default')}}}
    status, _ = root.login(auth['username'], auth['password'], {'name': auth.get('user_domain_name', 'Default')}, scope)
    if status != 201: raise Failed(f'login of the administrator: {status}')
    return root


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('allod', nargs='?'); p.add_argument('--clouds'); p.add_argument('--prefix', default='scs-test-')
    a = p.parse_args()
    if bool(a.allod) == bool(a.clouds): p.error('name the binary or --clouds')
    check = Check()
    if a.clouds: return run(administrator(check, a.clouds), a.prefix)
    with tempfile.TemporaryDirectory(prefix='allod-managers-') as state:
        cloud = Identity(a.allod, state, 'identity')
        try:
            root = Person(check, cloud.url + '/v3', cloud.ca)
            root.token = cloud.token
            run(root, a.prefix)
        finally: cloud.stop()


if __name__ == '__main__':
    try: main()
    except Failed as e: sys.exit(f'FAIL: {e}')
