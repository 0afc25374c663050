#!/usr/bin/env python3
"""Runs the stock `openstack` client against a cloud and checks what it says: every command, its exit code, no
traceback, and the values that must come back. Usage: cli.py CLOUDS_YAML [--only WORD] [--list]

Commands run in one interpreter per command, exactly as a user's shell would. Exit code 0 only if all passed.
"""
import argparse, json, os, subprocess, sys, tempfile, time, uuid

TAG = 'cli-' + uuid.uuid4().hex[:6]


class Failed(Exception):
    pass


class Client:
    def __init__(self, clouds, binary):
        self.env = {k: v for k, v in os.environ.items() if not k.startswith('OS_')}
        self.env.update(OS_CLIENT_CONFIG_FILE=clouds, PYTHONWARNINGS='ignore', COLUMNS='400')
        self.env.pop('PYTHONDONTWRITEBYTECODE', None)
        self.binary, self.count, self.seconds = binary, 0, 0.0

    def run(self, args, cloud='allod', ok=True, want_json=False, stdin=None):
        command = [self.binary, '--os-cloud', cloud, *args] + (['-f', 'json'] if want_json else [])
        begin = time.time()
        p = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=180, input=stdin)
        self.count += 1
        self.seconds += time.time() - begin
        shown = 'openstack ' + ' '.join(args)
        if 'Traceback (most recent call last)' in p.stderr + p.stdout:
            raise Failed(f'{shown}: traceback\n{p.stderr[-1500:]}')
        if ok and p.returncode:
            raise Failed(f'{shown}: exit {p.returncode}\n{p.stderr[-800:]}')
        if not ok and not p.returncode:
            raise Failed(f'{shown}: was expected to fail')
        if want_json:
            try: return json.loads(p.stdout)
            except ValueError: raise Failed(f'{shown}: not JSON: {p.stdout[:300]}')
        return p.stdout + p.stderr

    def __call__(self, line, **kw):
        return self.run(line.split() if isinstance(line, str) else line, **kw)

    def json(self, line, **kw):
        return self(line, want_json=True, **kw)

    def wait(self, line, key, want, seconds=120, **kw):
        end = time.time() + seconds
        while True:
            value = self.json(line, **kw)[key]
            if value == want: return
            if value in ('ERROR', 'error') or time.time() > end:
                raise Failed(f'{line}: {key} is {value}, not {want}: {self.json(line, **kw).get("fault")}')
            time.sleep(.3)

    def gone(self, line, seconds=60, **kw):
        end = time.time() + seconds
        while True:
            try: self(line, **kw)
            except Failed: return
            if time.time() > end: raise Failed(f'{line}: still there')
            time.sleep(.3)


def equal(got, want, what):
    if got != want: raise Failed(f'{what}: {got!r} is not {want!r}')


def names(rows, key='Name'):
    return [r[key] for r in rows]


def has(rows, name, key='Name'):
    if name not in names(rows, key): raise Failed(f'{name} is not in {names(rows, key)}')


def by_credential(c, ac):
    """A token by application credential: a clouds.yaml of its own, as a user would write it."""
    base = json.loads(subprocess.run([os.path.join(os.path.dirname(c.binary), 'python3'), '-c',
        'import json,sys,yaml;print(json.dumps(yaml.safe_load(open(sys.argv[1]))))', c.env['OS_CLIENT_CONFIG_FILE']],
        capture_output=True, text=True, check=True).stdout)['clouds']['allod']
    cloud = {**base, 'auth_type': 'v3applicationcredential', 'auth': {'auth_url': base['auth']['auth_url'],
             'application_credential_id': ac.get('id') or ac['ID'], 'application_credential_secret': ac.get('secret') or ac['Secret']}}
    with tempfile.NamedTemporaryFile('w', suffix='.yaml') as f:
        json.dump({'clouds': {'ac': cloud}}, f); f.flush()
        other = Client(f.name, c.binary); other.json('token issue', cloud='ac'); c.count += 1


# ---------------------------------------------------------------- areas, each leaves nothing behind
def identity(c):
    token = c.json('token issue')
    c.json('catalog list'); c.json('catalog show identity'); c(['token', 'revoke', token['id']])
    A = dict(cloud='allod-admin')
    for kind in ('service', 'endpoint', 'region', 'role', 'domain', 'project', 'user'): c.json(f'{kind} list', **A)
    c('user list', ok=False); c('project list --my-projects')
    p, u, g, r, d = (f'{TAG}-{x}' for x in 'pugrd')
    equal(c.json(f'domain create {d}', **A)['name'], d, 'domain')
    equal(c.json(f'project create --description x {p}', **A)['description'], 'x', 'project')
    c(f'project set --description y --tag t1 {p}', **A); equal(c.json(f'project show {p}', **A)['description'], 'y', 'project')
    uid = c.json(f'user create --password secret-{TAG} --email a@b.c {u}', **A)['id']
    c(f'user set --description z {u}', **A); equal(c.json(f'user show {u}', **A)['id'], uid, 'user')
    c(f'group create {g}', **A); c(f'group add user {g} {u}', **A); c(f'group contains user {g} {u}', **A)
    has(c.json(f'group list --user {u}', **A), g)
    c(f'role create {r}', **A); c(f'role add --project {p} --user {u} member', **A); c(f'role add --project {p} --group {g} {r}', **A)
    rows = c.json(f'role assignment list --names --project {p}', **A)
    if len(rows) != 2: raise Failed(f'role assignments: {rows}')
    eff = c.json(f'role assignment list --names --effective --user {u}', **A)
    has(eff, 'reader', 'Role')
    as_user = ['--os-auth-type', 'password', '--os-username', u, '--os-password', f'secret-{TAG}', '--os-project-name', p]
    c([*as_user, 'token', 'issue'], want_json=True)
    ac = c.json([*as_user, 'application', 'credential', 'create', f'{TAG}-ac'])
    by_credential(c, ac)
    c([*as_user, 'application', 'credential', 'list'], want_json=True)
    c([*as_user, 'application', 'credential', 'delete', f'{TAG}-ac'])
    c(f'role remove --project {p} --user {u} member', **A); c([*as_user, 'token', 'issue'])
    c(f'role remove --project {p} --group {g} {r}', **A); c([*as_user, 'token', 'issue'], ok=False)
    c(f'group remove user {g} {u}', **A)
    for kind, name in (('user', u), ('group', g), ('role', r), ('project', p)): c(f'{kind} delete {name}', **A)
    c(f'domain set --disable {d}', **A); c(f'domain delete {d}', **A)
    c(f'region create {TAG}', **A); c.json(f'region show {TAG}', **A)
    s = c.json(f'service create --name {TAG} {TAG}', **A)['id']
    e = c.json(f'endpoint create --region {TAG} {s} public http://x/', **A)['id']
    c(f'endpoint set --url http://y/ {e}', **A); equal(c.json(f'endpoint show {e}', **A)['url'], 'http://y/', 'endpoint')
    c(f'endpoint delete {e}', **A); c(f'service delete {s}', **A); c(f'region delete {TAG}', **A)


def image(c):
    with tempfile.NamedTemporaryFile(suffix='.raw') as f:
        f.write(os.urandom(1 << 20)); f.flush()
        name = f'{TAG}-i'
        i = c.json(['image', 'create', '--disk-format', 'raw', '--container-format', 'bare', '--file', f.name,
                    '--property', 'os_distro=x', '--tag', 'blue', name])
        equal(i['status'], 'active', 'image'); equal(i['size'], 1 << 20, 'size')
        has(c.json('image list'), name); has(c.json('image list --tag blue --long'), name)
        c(f'image set --property a=b --min-disk 1 --protected {name}'); c(f'image delete {name}', ok=False)
        equal(c.json(f'image show {name}')['properties'].get('a'), 'b', 'property')
        c(f'image unset --property a --tag blue {name}'); c(f'image set --unprotected {name}')
        with tempfile.TemporaryDirectory() as d:
            c(['image', 'save', '--file', d + '/x', name]); equal(open(d + '/x', 'rb').read(), open(f.name, 'rb').read(), 'bytes')
        c(f'image show {i["id"]}', cloud='allod-alt', ok=False)
        c(f'image set --shared {name}')
        alt = c.json('token issue', cloud='allod-alt')['project_id']
        c(f'image add project {name} {alt}'); c(f'image set --accept {i["id"]}', cloud='allod-alt'); c.json(f'image show {i["id"]}', cloud='allod-alt')
        c.json(f'image member list {name}'); c(f'image remove project {name} {alt}')
        c(f'image set --deactivate {name}', cloud='allod-admin'); c(f'image set --activate {name}', cloud='allod-admin')
        c(f'image delete {name}'); c(f'image show {name}', ok=False)


def network(c):
    A = dict(cloud='allod-admin')
    c.json('extension list --network'); c.json('availability zone list --network'); c.json('network agent list', **A)
    n, s, r, p, g = (f'{TAG}-{x}' for x in 'nsrpg')
    net = c.json(f'network create {n}')['id']; c(f'network set --description d {n}'); equal(c.json(f'network show {n}')['description'], 'd', 'network')
    c.json(f'subnet create --network {n} --subnet-range 10.77.0.0/24 --dns-nameserver 9.9.9.9 {s}')
    c(f'subnet set --name {s}2 {s}'); c(f'subnet set --name {s} {s}2'); has(c.json('subnet list'), s)
    c(f'subnet create --network {n} --subnet-range 10.77.0.128/25 x', ok=False)
    c.json(f'subnet create --network {n} --ip-version 6 --ipv6-ra-mode slaac --ipv6-address-mode slaac --subnet-range fd00:77::/64 {s}6')
    c.json(f'port create --network {n} --fixed-ip subnet={s},ip-address=10.77.0.50 {p}')
    c(f'port set --allowed-address ip-address=10.77.0.60 {p}'); equal(c.json(f'port show {p}')['allowed_address_pairs'][0]['ip_address'], '10.77.0.60', 'pair')
    has(c.json(f'port list --network {n}'), p)
    c(f'port show {p}', cloud='allod-alt', ok=False); c(f'network show {net}', cloud='allod-alt', ok=False)
    c(f'router create {r}'); c(f'router set --external-gateway public {r}'); c(f'router add subnet {r} {s}')
    c.json(f'router show {r}'); has(c.json('router list'), r)
    f = c.json('floating ip create public'); c(['floating', 'ip', 'set', '--port', p, f['id']])
    equal(c.json(f'floating ip show {f["id"]}')['fixed_ip_address'], '10.77.0.50', 'floating ip'); c.json('floating ip list')
    c(f'floating ip unset --port {f["id"]}'); c(f'floating ip delete {f["id"]}')
    c(f'security group create {g}'); rule = c.json(f'security group rule create --protocol tcp --dst-port 22 --remote-ip 0.0.0.0/0 {g}')['id']
    c(f'security group rule create --protocol tcp --dst-port 22 --remote-ip 0.0.0.0/0 {g}', ok=False)
    c.json(f'security group rule list {g}'); c.json(f'security group rule show {rule}'); c(f'security group set --description q {g}')
    c(f'port set --security-group {g} {p}'); c(f'security group delete {g}', ok=False); c(f'port set --no-security-group {p}')
    c(f'security group rule delete {rule}'); c(f'security group delete {g}')
    c(f'network delete {n}', ok=False)
    c(f'router remove subnet {r} {s}'); c(f'router unset --external-gateway {r}'); c(f'router delete {r}')
    c(f'port delete {p}'); c(f'subnet delete {s}6'); c(f'subnet delete {s}'); c(f'network delete {n}')


def volume(c):
    A = dict(cloud='allod-admin')
    v, s, t = (f'{TAG}-{x}' for x in 'vst')
    c.json('volume type list'); c(f'volume type create --property k=v {t}', **A); c.json(f'volume type show {t}', **A)
    c.json(f'volume create --size 1 --property a=b {v}'); c.wait(f'volume show {v}', 'status', 'available')
    has(c.json('volume list'), v); c(f'volume set --name {v}x --description d {v}'); c(f'volume set --name {v} {v}x')
    c(f'volume set --size 2 {v}'); c.wait(f'volume show {v}', 'status', 'available'); equal(c.json(f'volume show {v}')['size'], 2, 'size')
    c.json(f'volume snapshot create --volume {v} {s}'); c.wait(f'volume snapshot show {s}', 'status', 'available')
    has(c.json('volume snapshot list'), s); c(f'volume snapshot set --property z=1 {s}')
    c(f'volume delete {v}', ok=False)
    c.json(f'volume create --snapshot {s} --size 2 {v}2'); c.wait(f'volume show {v}2', 'status', 'available')
    c(f'volume delete {v}2'); c(f'volume snapshot delete {s}'); c.gone(f'volume snapshot show {s}'); c.gone(f'volume show {v}2')
    c(f'volume delete {v}'); c.gone(f'volume show {v}'); c(f'volume type delete {t}', **A)
    c.json('volume service list', **A); c.json('availability zone list --volume')


def compute(c):
    A = dict(cloud='allod-admin')
    c.json('flavor list'); c.json('flavor show SCS-1V-4'); c.json('hypervisor list', **A); c.json('compute service list', **A)
    c.json('availability zone list'); c.json('availability zone list --compute'); c.json('extension list --compute')
    hv = c.json('hypervisor list', **A)[0]; c.json(f'hypervisor show {hv["ID"]}', **A); c.json('hypervisor stats show', **A)
    k, s, n, v, g, fl = (f'{TAG}-{x}' for x in 'ksnvgf')
    c(f'flavor create --ram 64 --vcpus 1 --disk 1 --property hw:x=y {fl}', **A); c(f'flavor set --property a=b {fl}', **A)
    c.json(f'flavor show {fl}', **A)
    with tempfile.TemporaryDirectory() as d:
        subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', d + '/k'], check=True)
        c(['keypair', 'create', '--public-key', d + '/k.pub', k])
    has(c.json('keypair list'), k); c.json(f'keypair show {k}')
    c(f'network create {n}'); c(f'subnet create --network {n} --subnet-range 10.78.0.0/24 {n}')
    c(f'server group create --policy anti-affinity {g}'); c.json('server group list'); c.json(f'server group show {g}')
    img = next(i['Name'] for i in c.json('image list') if i['Status'] == 'active')
    made = c.json(['server', 'create', '--image', img, '--flavor', fl, '--network', n, '--key-name', k, '--property', 'role=db', '--wait', s])
    equal(made['status'], 'ACTIVE', 'server')
    has(c.json('server list'), s); c.json('server list --long'); row = c.json(f'server show {s}')
    if n not in row['addresses']: raise Failed(f'addresses: {row["addresses"]}')
    c(f'server show {made["id"]}', cloud='allod-alt', ok=False)
    c(f'server set --property x=y --name {s}x {s}'); c(f'server set --name {s} {s}x'); c(f'server unset --property x {s}')
    c(f'console log show {s}')
    for verb, want in (('pause', 'PAUSED'), ('unpause', 'ACTIVE'), ('suspend', 'SUSPENDED'), ('resume', 'ACTIVE'), ('stop', 'SHUTOFF'), ('start', 'ACTIVE')):
        c(f'server {verb} {s}'); c.wait(f'server show {s}', 'status', want)
    c(f'server reboot {s}'); c.wait(f'server show {s}', 'status', 'ACTIVE')
    c(f'server lock {s}'); c(f'server stop {s}', **{'cloud': 'allod', 'ok': False}); c(f'server unlock {s}')
    c(f'volume create --size 1 {v}'); c.wait(f'volume show {v}', 'status', 'available')
    c(f'server add volume {s} {v}'); c.wait(f'volume show {v}', 'status', 'in-use'); c.json(f'server volume list {s}')
    c(f'server remove volume {s} {v}'); c.wait(f'volume show {v}', 'status', 'available'); c(f'volume delete {v}')
    c(f'security group create {g}'); c(f'server add security group {s} {g}'); c(f'server remove security group {s} {g}'); c(f'security group delete {g}')
    c(f'server add network {s} {n}'); c.json(f'port list --server {s}'); c.json(f'server event list {s}')
    c(f'server delete --wait {s}'); c(f'server show {s}', ok=False)
    c(f'server group delete {g}'); c(f'keypair delete {k}'); c(f'flavor delete {fl}', **A)
    c(f'network delete {n}')


def quota(c):
    A = dict(cloud='allod-admin')
    me = c.json('token issue')['project_id']
    c.json('quota show'); c.json('quota show --default'); c.json('limits show --absolute'); c(f'quota set --instances 12 --networks 11 --volumes 13 {me}', **A)
    q = {r['Resource']: r['Limit'] for r in c.json('quota show')}
    equal((q['instances'], q['networks'], q['volumes']), (12, 11, 13), 'quota')
    c('quota set --instances 99 ' + me, ok=False); c(f'quota delete {me}', **A)
    q = {r['Resource']: r['Limit'] for r in c.json('quota show')}
    if 12 == q['instances'] or 11 == q['networks'] or 13 == q['volumes']: raise Failed(f'quota delete left {q}')


def placement(c):
    A = dict(cloud='allod-admin')
    rows = c.json('resource provider list', **A)
    u = rows[0]['uuid']; c.json(f'resource provider show {u}', **A); c.json(f'resource provider inventory list {u}', **A)
    c.json(f'resource provider usage show {u}', **A); c.json('resource class list', **A); c.json('trait list', **A)
    c('resource provider list', ok=False)


AREAS = [identity, image, network, volume, compute, quota, placement]


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('clouds'); ap.add_argument('--only', default='')
    ap.add_argument('--openstack', default=os.path.join(os.path.dirname(__file__), '..', '.venv', 'bin', 'openstack'))
    a = ap.parse_args(); failed = passed = 0
    for area in AREAS:
        if a.only and a.only not in area.__name__: continue
        c = Client(os.path.abspath(a.clouds), a.openstack); begin = time.time()
        try: area(c); passed += 1; verdict = 'ok'
        except Failed as e: failed += 1; verdict = f'FAILED: {e}'
        print(f'{area.__name__:10} {c.count:3} commands {time.time() - begin:6.1f} s  {verdict}', flush=True)
    print(f'{passed} passed, {failed} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
