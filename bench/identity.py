#!/usr/bin/env python3
"""Identity at size: a Keystone of many users is taken over, listed, looked up and logged in to.

  bench/identity.py ALLOD [--users 100000] [--projects 20000] [--database sqlite|postgresql] [--keystone] [--out DIR]

A dump as mysqldump writes it is made (half of the users and projects in one domain, the rest in a hundred; two roles for each user,
twenty users in each group), imported with `allod identity import`, and served by `allod server --services identity`. Then,
over TLS on the same cores: latencies of lists and look-ups one at a time; CPU of a token by password and of a validation. What a
token costs beside bcrypt comes from two users whose hashes have 4 and 12 rounds: bcrypt(12) is 256 times bcrypt(4), all else is alike.
With --keystone the same loads are then put on a Keystone of 2026.1 from PyPI: uwsgi with a worker for each processor, SQLite, plain HTTP, and
the cheapest cache it knows (`dogpile.cache.memory`, in the workers themselves), for a handful of users.
Writes identity-DATABASE.json. Standard library only; `wrk` for the steady loads.
"""
import argparse, asyncio, ctypes, hashlib, json, os, resource, shutil, subprocess, sys, tempfile, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bench import Cloud, Cpu, lat, load, one_at_a_time
from storm import Postgres, pss, read

PASSWORD = 'bench-password'
HASHES = {12: '$2b$12$abcdefghijklmnopqrstuu.aLDYhIFH5t4GedjSoVWpXFPipew48O', 4: '$2b$04$abcdefghijklmnopqrstuujVDM8HfkdesWUJGE0gJ0aJeLMzUO8De'}
ROLES = ('admin', 'manager', 'member', 'reader')
TABLES = {
    'region': 'id description parent_region_id extra', 'role': 'id name extra domain_id description', 'implied_role': 'prior_role_id implied_role_id',
    'project': 'id name extra description enabled domain_id parent_id is_domain', 'user': 'id extra enabled default_project_id created_at last_active_at domain_id',
    'local_user': 'id user_id domain_id name failed_auth_count failed_auth_at', 'group': 'id domain_id name description extra',
    'password': 'id local_user_id expires_at self_service password_hash created_at_int expires_at_int created_at',
    'user_group_membership': 'user_id group_id', 'assignment': 'type actor_id target_id role_id inherited'}
SMALL = 100  # domains beside the large one


def ident(kind, n): return hashlib.md5(('%s%d' % (kind, n)).encode()).hexdigest()  # as random as Keystone's


def domain_of(n): return ident('d', 0) if n % 2 == 0 else ident('d', 1 + n // 2 % SMALL)


class Dump:
    def __init__(self, path):
        self.f = open(path, 'w')
        for table, columns in TABLES.items():
            self.f.write('CREATE TABLE `%s` (\n%s,\n  PRIMARY KEY (`x`)\n) ENGINE=InnoDB;\n' % (table, ',\n'.join('  `%s` text' % c for c in columns.split())))

    def rows(self, table, rows):
        def cell(v): return 'NULL' if v is None else str(v) if isinstance(v, int) else "'%s'" % v
        part = []
        for row in rows:
            part.append('(%s)' % ','.join(map(cell, row)))
            if len(part) == 1000: self.f.write('INSERT INTO `%s` VALUES %s;\n' % (table, ','.join(part))); part = []
        if part: self.f.write('INSERT INTO `%s` VALUES %s;\n' % (table, ','.join(part)))


def make(path, users, projects):
    d, roles, root = Dump(path), {n: ident('e', i) for i, n in enumerate(ROLES)}, '<<keystone.domain.root>>'
    d.rows('region', [('RegionOne', '', None, '{}')])
    d.rows('role', [(i, n, '{}', '<<null>>', None) for n, i in roles.items()])
    d.rows('implied_role', [(roles[a], roles[b]) for a, b in zip(ROLES, ROLES[1:])])
    d.rows('project', [(root, root, '{}', '', 0, root, None, 1), ('default', 'Default', '{}', '', 1, root, None, 1)])
    d.rows('project', ((ident('d', n), 'domain-%d' % n, '{}', '', 1, root, None, 1) for n in range(SMALL + 1)))
    d.rows('project', ((ident('b', n), 'project-%d' % n, '{}', 'of a customer', 1, domain_of(n), domain_of(n), 0) for n in range(projects)))
    d.rows('user', ((ident('a', n), '{\\"email\\": \\"user-%d@example.org\\"}' % n, 1, None, '2026-01-01 00:00:00', None, domain_of(n)) for n in range(users)))
    d.rows('local_user', ((n + 1, ident('a', n), domain_of(n), 'user-%d' % n, 0, None) for n in range(users)))
    d.rows('password', ((n + 1, n + 1, None, 0, HASHES[4 if n == 4 else 12], 1767225600000000 + n, None, '2026-01-01 00:00:00') for n in range(users)))
    d.rows('group', ((ident('c', n), domain_of(n), 'group-%d' % n, '', '{}') for n in range(users // 100)))
    d.rows('user_group_membership', ((ident('a', (g * 20 + i) * 2 % users + g % 2), ident('c', g)) for g in range(users // 100) for i in range(20)))
    d.rows('assignment', (('UserProject', ident('a', n), ident('b', (n + far) % projects), roles['member' if far == 0 else 'reader'], 0) for n in range(users) for far in (0, 2)))
    d.rows('assignment', (('GroupProject', ident('c', g), ident('b', g % projects), roles['reader'], 0) for g in range(users // 100)))
    d.f.close()
    return os.path.getsize(path)


class Identity:
    def __init__(self, a, dir):
        self.a, self.dir, self.state = a, dir, dir + '/state'
        self.pg = Postgres(dir + '/pg') if a.database == 'postgresql' else None
        self.config = dir + '/config.toml'
        with open(self.config, 'w') as f: f.write('listen = "127.0.0.1:0"\n' + ('database = "%s"\n' % self.pg.url if self.pg else ''))

    def take(self, dump):
        before, t = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        p = subprocess.run([self.a.allod, 'identity', 'import', '--state', self.state, '--config', self.config, '--from-dump', dump, '--json'],
                           capture_output=True, text=True)
        if p.returncode: raise RuntimeError(p.stderr)
        wall, after = time.time() - t, resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads(p.stdout)
        return {'wall_s': round(wall, 2), 'cpu_s': round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
                'peak_mib': after.ru_maxrss // 1024, 'taken': report['taken'], 'left': report['left']}

    def start(self):
        t = time.time()
        self.p = subprocess.Popen([self.a.allod, 'server', '--services', 'identity', '--state', self.state, '--config', self.config],
                                  stdout=open(self.dir + '/log', 'w'), stderr=subprocess.STDOUT)
        while True:
            if self.p.poll() is not None: raise RuntimeError(read(self.dir + '/log')[-2000:])
            try: base = read(self.state + '/run/listening').strip(); break
            except OSError: time.sleep(.02)
        os.environ.update(OS_AUTH_URL=base + '/identity', OS_USERNAME='admin', OS_PROJECT_NAME='admin', SSL_CERT_FILE=self.state + '/ca.crt',
                          OS_PASSWORD=json.loads(read(self.state + '/secrets.json'))['admin'])
        return time.time() - t

    def stop(self):
        if hasattr(self, 'p'): self.p.terminate(); self.p.wait(60)
        if self.pg: self.pg.stop()


def questions(users, projects):
    """Name, path by turn: each turn asks for something else, so that nothing is remembered."""
    u = lambda i: i * 7919 % users
    p = lambda i: i * 7919 % projects
    big, small = ident('d', 0), ident('d', 7)
    return {
        'users, 100': lambda i: '/users?limit=100',
        'users, 100 after a marker': lambda i: '/users?limit=100&marker=' + ident('a', u(i)),
        'users of the large domain, 100': lambda i: '/users?limit=100&domain_id=' + big,
        'users of a small domain, 100': lambda i: '/users?limit=100&domain_id=' + small,
        'users by name': lambda i: '/users?name=user-%d' % u(i),
        'users by name and domain': lambda i: '/users?name=user-%d&domain_id=%s' % (u(i), domain_of(u(i))),
        'users by a part of the name, 100': lambda i: '/users?limit=100&name__contains=9%d' % (i % 10),
        'user by id': lambda i: '/users/' + ident('a', u(i)),
        'projects, 100': lambda i: '/projects?limit=100',
        'projects of the large domain, 100': lambda i: '/projects?limit=100&domain_id=' + big,
        'projects by name': lambda i: '/projects?name=project-%d' % p(i),
        'project by id': lambda i: '/projects/' + ident('b', p(i)),
        'groups, 100': lambda i: '/groups?limit=100',
        'groups of a user': lambda i: '/users/%s/groups' % ident('a', u(i)),
        'projects of a user': lambda i: '/users/%s/projects' % ident('a', u(i)),
        'assignments of a user': lambda i: '/role_assignments?user.id=' + ident('a', u(i)),
        'assignments of a user, names': lambda i: '/role_assignments?include_names&user.id=' + ident('a', u(i)),
        'assignments of a user, effective': lambda i: '/role_assignments?effective&user.id=' + ident('a', u(i)),
        'assignments on a project': lambda i: '/role_assignments?scope.project.id=' + ident('b', p(i)),
        'assignments on a project, effective': lambda i: '/role_assignments?effective&scope.project.id=' + ident('b', p(i)),
    }


async def latencies(a, c):
    out = {}
    for name, path in questions(a.users, a.projects).items():
        xs = []
        for i in range(a.turns + 5):
            t = time.perf_counter()
            s, _, b = await c.http.req('GET', c.auth_url + path(i), None, {'X-Auth-Token': c.token})
            if i >= 5: xs.append(time.perf_counter() - t)
            if s != 200: raise RuntimeError('%s: %d %s' % (name, s, b[:200]))
        first = next(v for k, v in json.loads(b).items() if k != 'links')
        out[name] = {**lat(xs), 'items': len(first) if isinstance(first, list) else 1}
        print('%-38s %4d items  p50 %6.2f ms  p99 %6.2f ms' % (name, out[name]['items'], out[name]['p50_ms'], out[name]['p99_ms']), flush=True)
    return out


def libcrypt(n=20):
    """CPU of one bcrypt of 12 rounds by the system's library, for comparison."""
    try: crypt = ctypes.CDLL('libcrypt.so.1').crypt
    except OSError: return None
    crypt.restype = ctypes.c_char_p
    t = time.process_time()
    for _ in range(n):
        if crypt(PASSWORD.encode(), HASHES[12].encode()) != HASHES[12].encode(): return None
    return (time.process_time() - t) * 1000 / n


def login(n, projects):
    user = {'id': ident('a', n), 'password': PASSWORD}
    return {'auth': {'identity': {'methods': ['password'], 'password': {'user': user}}, 'scope': {'project': {'id': ident('b', n % projects)}}}}


def validations(asker, token):
    """Name, connections, headers."""
    both, own = {'X-Auth-Token': asker, 'X-Subject-Token': token}, {'X-Auth-Token': token, 'X-Subject-Token': token}
    return [('validation', 8, both), ('validation, one connection', 1, both), ('validation, 32 connections', 32, both), ('own token', 8, own)]


async def costs(a, c, cpu):
    """CPU-ms each of tokens and validations; one connection, so that logins do not wait for each other."""
    out, header = {}, {'Content-Type': 'application/json'}
    for rounds, n in ((12, 12), (4, 4), (12, 14), (4, 4)):
        body = login(n, a.projects)
        s, _, b = await c.http.req('POST', c.auth_url + '/auth/tokens', body)
        if s != 201: raise RuntimeError('login: %d %s' % (s, b[:200]))
        r = await asyncio.to_thread(load, c, cpu, 'POST', c.auth_url + '/auth/tokens', header, body)
        if 'error' in r or r['errors']: raise RuntimeError(r)
        out.setdefault('token_%d' % rounds, []).append(r)
    mean = lambda rounds: sum(r['server_cpu_s'] for r in out['token_%d' % rounds]) * 1000 / sum(r['requests'] for r in out['token_%d' % rounds])
    t12, t4 = mean(12), mean(4)
    bcrypt = (t12 - t4) * 256 / 255
    out['token'] = {'cpu_ms': round(t12, 2), 'bcrypt_ms': round(bcrypt, 2), 'rest_ms': round(t12 - bcrypt, 3), 'rest_percent': round((t12 - bcrypt) / bcrypt * 100, 2), 'libcrypt_ms': libcrypt()}
    print('token by password: %.2f CPU-ms, of which bcrypt %.2f; the rest is %.3f ms = %.2f %%' % (t12, bcrypt, t12 - bcrypt, out['token']['rest_percent']), flush=True)
    s, h, _ = await c.http.req('POST', c.auth_url + '/auth/tokens', login(12, a.projects))
    for name, conns, headers in validations(c.token, h['x-subject-token']):
        out[name] = await steady_cost(a, c, cpu, name, conns, 'GET', headers)
    # As services see it after a change: nothing is remembered of any of these tokens.
    tokens = []
    for n in range(4, 204, 2):
        s, h, b = await c.http.req('POST', c.auth_url + '/auth/tokens', {'auth': {**login(4, a.projects)['auth'], 'scope': {'unscoped': {}}}})
        if s != 201: raise RuntimeError('login: %d %s' % (s, b[:200]))
        tokens.append(h['x-subject-token'])
    xs = []
    for t in tokens:
        began = time.perf_counter(); s, _, b = await c.http.req('GET', c.auth_url + '/auth/tokens', None, {'X-Auth-Token': c.token, 'X-Subject-Token': t}); xs.append(time.perf_counter() - began)
        if s != 200: raise RuntimeError('validation: %d %s' % (s, b[:200]))
    out['first validation'] = lat(xs)
    print('first validation of a token: p50 %.2f ms' % out['first validation']['p50_ms'], flush=True)
    return out


async def steady_cost(a, c, cpu, name, conns, method, headers, body=None):
    a.conns = conns
    await one_at_a_time(c, method, c.auth_url + '/auth/tokens', 20 if conns > 1 else 3, headers, body)  # workers warm
    r = await asyncio.to_thread(load, c, cpu, method, c.auth_url + '/auth/tokens', headers, body)
    if 'error' in r or r['errors']: raise RuntimeError(r)
    print('%s: %.3f CPU-ms, %.1f/s' % (name, r['server_cpu_ms_per_op'], r['req_s']), flush=True)
    return r


def peer(a, dir, ours):
    """What a Python Keystone takes for the same, and how many times ours that is."""
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'conformance'))
    from realkeystone import Keystone, install
    install()
    k = Keystone(dir); k.prepare(rounds=12, cache=True)
    k.start(workers=os.cpu_count())
    try:
        os.environ.update(OS_AUTH_URL=k.url + '/v3', OS_PASSWORD=k.password)
        c = Cloud(a); cpu = Cpu(argparse.Namespace(pid_name=['keystone=%d' % k.process.pid], pids=None))
        user = k.make('user', name='bench', domain_id='default', password=PASSWORD); project = k.make('project', name='bench', domain_id='default')
        k.admin('PUT', '/projects/%s/users/%s/roles/%s' % (project, user, k.role('member')))
        who = {'auth': {'identity': {'methods': ['password'], 'password': {'user': {'id': user, 'password': PASSWORD}}}, 'scope': {'project': {'id': project}}}}

        async def run():
            await c.login()
            s, h, b = await c.http.req('POST', c.auth_url + '/auth/tokens', who)
            if s != 201: raise RuntimeError('login: %d %s' % (s, b[:200]))
            out = {'token': await steady_cost(a, c, cpu, 'Keystone: token by password', 1, 'POST', {'Content-Type': 'application/json'}, who)}
            for name, conns, headers in validations(c.token, h['x-subject-token']):
                out[name] = await steady_cost(a, c, cpu, 'Keystone: ' + name, conns, 'GET', headers)
            return out
        r = asyncio.run(run())
        for name, _, _ in validations('', ''):
            r[name]['times_ours'] = round(r[name]['server_cpu_ms_per_op'] / ours[name]['server_cpu_ms_per_op'], 1)
            print('%s: Keystone takes %.1f times the CPU' % (name, r[name]['times_ours']), flush=True)
        return r
    finally: k.stop()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('allod'); ap.add_argument('--users', type=int, default=100000); ap.add_argument('--projects', type=int, default=20000)
    ap.add_argument('--database', choices=['sqlite', 'postgresql'], default='sqlite'); ap.add_argument('--out', default='bench')
    ap.add_argument('--turns', type=int, default=300); ap.add_argument('--seconds', type=int, default=10); ap.add_argument('--keep', action='store_true')
    ap.add_argument('--only', default='latencies,costs'); ap.add_argument('--keystone', action='store_true')
    a = ap.parse_args(); a.allod, a.conns, a.compute_microversion = os.path.realpath(a.allod), 1, None
    dir = tempfile.mkdtemp(prefix='allod-identity-'); os.chmod(dir, 0o755)
    R = {'when': time.strftime('%FT%TZ', time.gmtime()), 'database': a.database, 'users': a.users, 'projects': a.projects, 'load': os.getloadavg()}
    server = None
    try:
        size = make(dir + '/keystone.sql', a.users, a.projects); print('dump: %d MiB' % (size >> 20), flush=True)
        server = Identity(a, dir)
        R['import'] = server.take(dir + '/keystone.sql')
        print('import: %(wall_s).1f s, %(cpu_s).1f CPU-s, %(peak_mib)d MiB: %(taken)s, left %(left)s' % R['import'], flush=True)
        R['start_s'] = round(server.start(), 2); print('start: %.2f s' % R['start_s'], flush=True)
        c = Cloud(a); cpu = Cpu(argparse.Namespace(pid_name=['allod=%d' % server.p.pid] + (['postgres=%d' % server.pg.p.pid] if server.pg else []), pids=None))

        async def run():
            await c.login()
            if 'latencies' in a.only: R['latencies'] = await latencies(a, c)
            if 'costs' in a.only: R['costs'] = await costs(a, c, cpu)
        asyncio.run(run())
        R['pss_mib'] = pss(server.p.pid); print('PSS: %d MiB' % R['pss_mib'])
        if a.keystone: R['keystone'] = peer(a, dir, R['costs'])
        with open(os.path.join(a.out, 'identity-%s.json' % a.database), 'w') as f: json.dump(R, f, indent=1)
    finally:
        if server: server.stop()
        if a.keep: print('kept in ' + dir)
        else: shutil.rmtree(dir, ignore_errors=True)


if __name__ == '__main__':
    main()
