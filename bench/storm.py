#!/usr/bin/env python3
"""A boot storm: many servers on many simulated hosts, one `allod up --sim-hosts` on SQLite or PostgreSQL.

  bench/storm.py ALLOD [--hosts 1000] [--servers 50000] [--database sqlite|postgresql] [--out DIR]

Phases: servers are created as fast as the cloud takes them, counted until all are ACTIVE, in steps that give the growth
curve; then an operator drains a tenth of the hosts: disables them, migrates their servers away and confirms each; then the
server is killed and comes back with everything there. Meanwhile a second client
asks what tenants ask, a few times a second: its latencies are the p50/p99 of the table. The client runs on the same
cores; the CPU time of the cloud's processes (simulated hosts included: they live in the server's process) and of the
client are told apart. Writes storm-DATABASE.json and storm-DATABASE.svg. Standard library only.
"""
import argparse, asyncio, glob, json, os, re, shutil, signal, ssl, subprocess, sys, tempfile, time, urllib.request
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, '../conformance')]
from bench import Cloud, Cpu, lat, pooled
from common import Postgres, ended, open_

QUOTA = {'instances': -1, 'cores': -1, 'ram': -1}


def read(path):
    with open(path) as f: return f.read()


def openrc(path):
    return dict(re.findall(r'^export (\w+)=[\'"]?([^\'"\n]*)[\'"]?$', read(path), re.M))


def pss(pid):
    try: return sum(int(x) for x in re.findall(r'^Pss:\s+(\d+)', read('/proc/%d/smaps_rollup' % pid), re.M)) // 1024
    except OSError: return 0


class Allod:
    def __init__(self, a, dir):
        self.a, self.state, self.up, self.server = a, dir + '/state', 0, 0
        self.pg = Postgres(dir + '/pg') if a.database == 'postgresql' else None
        with open(dir + '/config.toml', 'w') as f:
            f.write('sim_hosts = %d\n' % a.hosts + ('database = "%s"\n' % self.pg.url if self.pg else ''))

    def start(self):
        t = time.time()
        subprocess.run([self.a.allod, 'up', '--state', self.state, '--listen', '127.0.0.1:0', '--config', os.path.dirname(self.state) + '/config.toml', '--sim-hosts',
                        str(self.a.hosts), '--detach'], check=True, stdout=subprocess.DEVNULL)
        # It makes the certificate that /metrics wants to see.
        subprocess.run([self.a.allod, 'status', '--json', '--state', self.state], check=True, stdout=subprocess.DEVNULL)
        self.up = int(read(self.state + '/run/up.pid').split()[0]); self.server = int(read(self.state + '/run/server.pid').split()[0])
        return time.time() - t

    def memory(self): return pss(self.up) + pss(self.server)

    def pids(self):
        a = argparse.Namespace(pid_name=['cloud=%d' % self.up] + (['postgres=%d' % self.pg.p.pid] if self.pg else []), pids=None)
        return Cpu(a)

    def down(self):
        subprocess.run([self.a.allod, 'down', '--state', self.state, '--purge'], stdout=subprocess.DEVNULL)
        # Somebody may have removed the directory that names the processes.
        ours = lambda pid: pid and self.state in open_('/proc/%d/cmdline' % pid)
        for pid in (self.up, self.server):
            if ours(pid): os.kill(pid, signal.SIGTERM)
            end = time.time() + 20
            while ours(pid) and time.time() < end: time.sleep(.1)
            if ours(pid): os.kill(pid, signal.SIGKILL)
        if self.pg: self.pg.stop()


class Client(Cloud):
    """`Cloud` for one user of `clouds.yaml`, and the questions of the storm."""
    def __init__(self, rc, state):
        os.environ.update(rc); self.state = state; self.tls = ssl.create_default_context(cafile=state + '/ca.crt')
        cert = glob.glob(state + '/pki/host-*.crt')[0][:-4]; self.tls.load_cert_chain(cert + '.crt', cert + '.key')
        super().__init__(argparse.Namespace(compute_microversion='2.96'))

    async def metrics(self):
        def ask():
            with urllib.request.urlopen(self.base + '/metrics', context=self.tls, timeout=30) as answer: return answer.read().decode()
        out = {}
        for line in (await asyncio.to_thread(ask)).splitlines():
            if line and line[0] != '#':
                k, _, v = line.rpartition(' '); out[k] = float(v)
        return out

    async def login(self):
        await super().login()
        self.base = re.match(r'https?://[^/]+', self.auth_url).group(0)


def total(m, name, **labels):
    return sum(v for k, v in m.items() if (k == name or k.startswith(name + '{')) and all('%s="%s"' % i in k for i in labels.items()))


class Tenant:
    """What somebody else sees meanwhile: one question at a time, `every` seconds."""
    def __init__(self, c, every, ids):
        self.c, self.every, self.ids, self.xs, self.failed, self.over = c, every, ids, {}, [], False

    async def run(self):
        n = 0
        # Told by a flag: in Python 3.11 wait_for may swallow a cancellation.
        while not self.over:
            asks = [('token', 'GET', self.c.auth_url + '/auth/tokens'), ('image list', 'GET', self.c.url('image') + '/images'),
                    ('network list', 'GET', self.c.url('network') + '/networks'), ('flavor list', 'GET', self.c.url('compute') + '/flavors/detail'),
                    ('server list (100)', 'GET', self.c.url('compute') + '/servers/detail?limit=100')]
            if self.ids: asks.append(('server show', 'GET', self.c.url('compute') + '/servers/' + self.ids[n * 7919 % len(self.ids)]))
            name, method, url = asks[n % len(asks)]; n += 1
            t = time.perf_counter()
            try:
                s, _, b = await self.c.http.req(method, url, None, {'X-Auth-Token': self.c.token, 'X-Subject-Token': self.c.token}, timeout=60)
                if s != 200: self.failed.append((name, s, b[:100].decode('latin1')))
            except Exception as e: self.failed.append((name, repr(e)))
            self.xs.setdefault(name, []).append(time.perf_counter() - t)
            await asyncio.sleep(self.every)

    def told(self):
        every = [x for xs in self.xs.values() for x in xs]
        return {'all': lat(every), 'failed': self.failed[:5], 'failures': len(self.failed), **{k: lat(v) for k, v in self.xs.items()}}


async def meanwhile(c, ids, work):
    tenant = Tenant(c, .1, ids); task = asyncio.ensure_future(tenant.run())
    try: out = await work
    finally:
        tenant.over = True; await task
    return out, tenant.told()


async def active(c, want, deadline, since, on=lambda n: None):
    """Waits until all servers are ACTIVE; how many guests run comes from a gauge, so that the question costs nothing. The last
    look is at those that changed since then: a look at all others would be counted as work of the storm."""
    end, since = time.time() + deadline, time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(since))
    while True:
        m = await c.metrics(); n = total(m, 'allod_guests', power='running'); on(int(n))
        if n >= want: break
        if time.time() > end: raise RuntimeError('only %d of %d guests run' % (n, want))
        await asyncio.sleep(.25)
    while True:
        others = [(await c.call('GET', '%s/servers?all_tenants=1&status=%s&changes-since=%s&limit=5' % (c.url('compute'), s, since)))['servers'] for s in ('BUILD', 'ERROR')]
        if others[1]: raise RuntimeError('in ERROR: %s' % others[1])
        if not others[0]: return await c.metrics()
        if time.time() > end: raise RuntimeError('not ACTIVE: %s' % others[0])
        await asyncio.sleep(.1)


async def storm(a, cloud, R, save):
    root = Client(admin_rc(cloud.state), cloud.state); await root.login()
    c = Client(openrc(cloud.state + '/openrc'), cloud.state); await c.login()
    project = json.loads((await c.http.req('GET', c.auth_url + '/auth/projects', None, {'X-Auth-Token': c.token}))[2])['projects'][0]['id']
    await root.call('PUT', '%s/os-quota-sets/%s' % (root.url('compute'), project), {'quota_set': QUOTA})
    await root.call('PUT', '%s/quotas/%s' % (root.url('network'), project), {'quota': {'port': -1}})
    img = (await c.call('GET', c.url('image') + '/images'))['images'][0]['id']
    flv = next(f['id'] for f in (await c.call('GET', c.url('compute') + '/flavors'))['flavors'] if f['name'] == 'SCS-1V-4')
    net = (await c.call('POST', c.url('network') + '/networks', {'network': {'name': 'storm'}}))['network']['id']
    await c.call('POST', c.url('network') + '/subnets', {'subnet': {'network_id': net, 'ip_version': 4, 'cidr': '10.64.0.0/12'}})
    C, made, cpu = c.url('compute'), [], cloud.pids()
    R['hosts'] = a.hosts; R['idle_pss_mib'] = cloud.memory(); R['batch'] = a.batch; R['steps'] = []

    async def create(n):
        body = {'server': {'name': 'storm', 'imageRef': img, 'flavorRef': flv, 'networks': [{'uuid': net}], 'min_count': n, 'max_count': n, 'return_reservation_id': n > 1}}
        t = time.perf_counter(); s = await c.call('POST', C + '/servers', body)
        if n == 1: made.append(s['server']['id'])
        return time.perf_counter() - t

    done = 0
    for goal in a.steps:
        add = goal - done
        await c.login()
        before, s0, t0 = await root.metrics(), cpu.snap(), time.time()

        async def fill():
            sizes = [a.batch] * (add // a.batch) + ([add % a.batch] if add % a.batch else [])
            posts = await pooled(len(sizes), a.width, lambda i: create(sizes[i]))
            accepted = time.time() - t0
            m = await active(root, goal, a.deadline, t0, lambda n: print('\r%6d of %d ACTIVE' % (n, goal), end='', file=sys.stderr, flush=True) if sys.stderr.isatty() else None)
            return posts, accepted, m
        (posts, accepted, after), told = await meanwhile(c, made, fill())
        wall, d = time.time() - t0, cpu.delta(s0, cpu.snap(), add)
        client = cpu.snap()['me'] - s0['me']
        grown = lambda name, **l: total(after, name, **l) - total(before, name, **l)
        step = {'servers': goal, 'added': add, 'wall_s': round(wall, 2), 'accepted_s': round(accepted, 2), 'per_s': round(add / wall, 1), 'post': lat(posts), 'pss_mib': cloud.memory(),
                'client_cpu_s': round(client, 2), 'statements_per_server': round(grown('allod_store_statements_total') / add, 1),
                'transactions_per_server': round(grown('allod_store_seconds_count', kind='write') / add, 2), 'meanwhile': told, **d}
        R['steps'].append(step); done = goal; save()
        print('%7d servers: %6.1f/s, cloud %.2f CPU-ms each, client %.2f, %d MiB, %.0f statements each; meanwhile p50 %.1f ms, p99 %.1f ms, %d failures' % (
            goal, step['per_s'], d['server_cpu_ms_per_op'], client * 1000 / add, step['pss_mib'], step['statements_per_server'], told['all']['p50_ms'], told['all']['p99_ms'], told['failures']), flush=True)
    return root, c, made


def admin_rc(state):
    text = read(state + '/clouds.yaml'); part = text.split('allod-admin:', 1)[1]
    get = lambda k: re.search(r'\b%s: *"?([^"\n]+)"?' % k, part).group(1)
    return {'OS_AUTH_URL': get('auth_url'), 'OS_USERNAME': get('username'), 'OS_PASSWORD': get('password'), 'OS_PROJECT_NAME': get('project_name')}


async def drain(a, cloud, root, R, made):
    """An operator empties a tenth of the hosts, which are repaired: all servers go elsewhere with their disks."""
    C, want, cpu, s = root.url('compute'), R['steps'][-1]['servers'], cloud.pids(), {}
    services = sorted((x for x in (await root.call('GET', C + '/os-services?binary=nova-compute'))['services']), key=lambda x: x['host'])
    services = services[:max(1, len(services) // 10)]

    async def status(word): await pooled(len(services), a.width, lambda i: root.call('PUT', C + '/os-services/' + services[i]['id'], {'status': word}))

    async def there(host):
        ids, marker = [], ''
        while True:
            page = (await root.call('GET', '%s/servers?all_tenants=1&host=%s&limit=1000%s' % (C, host, marker)))['servers']
            ids += [x['id'] for x in page]
            if len(page) < 1000: return ids
            marker = '&marker=' + page[-1]['id']

    async def timed(id, word):
        t = time.perf_counter(); await root.call('POST', '%s/servers/%s/action' % (C, id), {word: None}); return time.perf_counter() - t

    async def moves(word): return [x['instance_uuid'] for x in (await root.call('GET', C + '/os-migrations?status=' + word))['migrations']]

    async def empty():
        left, posts, confirms = set(ids), [], []

        async def ask():
            posts.extend(await pooled(len(ids), a.width, lambda i: timed(ids[i], 'migrate'))); s['accepted_s'] = round(time.time() - t0, 2)
        asking = asyncio.ensure_future(ask())
        try:
            while left:
                came = [x for x in await moves('finished') if x in left]
                confirms.extend(await pooled(len(came), a.width, lambda i: timed(came[i], 'confirmResize')))
                left.difference_update(came)
                if asking.done(): asking.result()
                if sys.stderr.isatty(): print('\r%6d of %d to move' % (len(left), len(ids)), end='', file=sys.stderr, flush=True)
                refused = await moves('error')
                if refused: raise RuntimeError('%d moves were called off' % len(refused))
                if time.time() - t0 > a.deadline: raise RuntimeError('%d servers did not move' % len(left))
                await asyncio.sleep(.25)
            await asking
        finally: asking.cancel()
        s['arrived_s'] = round(time.time() - t0, 2)
        # Until the first hosts have forgotten them, too.
        while True:
            m = await root.metrics()
            if total(m, 'allod_guests', power='running') >= want and not total(m, 'allod_guests', power='shutdown') and not await moves('confirming'): break
            if time.time() - t0 > a.deadline: raise RuntimeError('not at rest: %s' % {k: v for k, v in m.items() if k.startswith('allod_guests')})
            await asyncio.sleep(.25)
        await active(root, want, a.deadline, t0)
        left = [x for host in services for x in await there(host['host'])]
        if left: raise RuntimeError('%d servers are still on hosts that were drained' % len(left))
        return posts, confirms

    await root.login(); before = await root.metrics()
    await status('disabled')
    ids = [x for host in services for x in await there(host['host'])]
    if not ids: raise RuntimeError('there is nothing to move')
    s0, t0 = cpu.snap(), time.time()
    (posts, confirms), told = await meanwhile(root, made, empty())
    wall, d, after = time.time() - t0, cpu.delta(s0, cpu.snap(), len(ids)), await root.metrics()
    await status('enabled')
    s.update(**d)
    s.update(hosts=len(services), servers=len(ids), wall_s=round(wall, 2), per_s=round(len(ids) / wall, 1), migrate=lat(posts), confirm=lat(confirms), pss_mib=cloud.memory(), meanwhile=told,
             statements_per_server=round((total(after, 'allod_store_statements_total') - total(before, 'allod_store_statements_total')) / len(ids), 1))
    R['drain'] = s
    print('drain of %d hosts: %d servers moved in %.1f s, %.1f/s, cloud %.2f CPU-ms each, %.0f statements each; meanwhile p50 %.1f ms, p99 %.1f ms, %d failures' % (
        len(services), len(ids), wall, s['per_s'], d['server_cpu_ms_per_op'], s['statements_per_server'], told['all']['p50_ms'], told['all']['p99_ms'], told['failures']), flush=True)


async def restart(a, cloud, root, c, R, made):
    """The control plane is killed and comes back with everything there; all hosts connect and report at once."""
    want, s = R['steps'][-1]['servers'], {}
    os.kill(cloud.server, 9)
    t0 = time.time(); pid = cloud.server
    while True:  # the supervisor starts it again
        try: pid = int(read(cloud.state + '/run/server.pid').split()[0])
        except (OSError, ValueError, IndexError): pass
        try:
            if pid != cloud.server: await c.login(); break
        except Exception: c.http.idle.clear()
        await asyncio.sleep(.05)
        if time.time() - t0 > a.deadline: raise RuntimeError('the server did not come back')
    s['api_answers_s'] = round(time.time() - t0, 2); cloud.server = pid
    root.http.idle.clear(); await root.login()
    cpu = cloud.pids(); s0 = cpu.snap()

    async def settle():
        while True:
            m = await root.metrics()
            if total(m, 'allod_hosts', state='up') >= a.hosts and total(m, 'allod_guests', power='running') >= want and not any(total(m, 'allod_reconcile_backlog', kind=k) for k in ('server', 'host', 'net')): return
            if time.time() - t0 > a.deadline: raise RuntimeError('not at rest: %s' % {k: v for k, v in m.items() if k.startswith(('allod_hosts', 'allod_guests', 'allod_reconcile_backlog'))})
            await asyncio.sleep(.25)
    _, told = await meanwhile(c, made, settle())
    s.update(at_rest_s=round(time.time() - t0, 2), pss_mib=cloud.memory(), meanwhile=told, **cpu.delta(s0, cpu.snap()))
    R['restart'] = s
    print('restart with %d servers: API after %.2f s, all hosts reported and at rest after %.1f s; meanwhile p50 %.1f ms, p99 %.1f ms, %d failures' % (
        want, s['api_answers_s'], s['at_rest_s'], told['all']['p50_ms'], told['all']['p99_ms'], told['failures']), flush=True)


def svg(R, path):
    """Servers over time and CPU per server, as a picture."""
    w, h, left, bottom = 760, 380, 70, 50
    pts, t = [(0, 0)], 0
    for s in R['steps']: t += s['wall_s']; pts.append((s['servers'], t))
    mx, my = pts[-1][0], pts[-1][1] * 1.1 or 1
    cpu = [(s['servers'], s['server_cpu_ms_per_op']) for s in R['steps']]; mc = max(v for _, v in cpu) * 1.5
    X = lambda v: left + v / mx * (w - 2 * left); Y = lambda v, m: h - bottom - v / m * (h - bottom - 30)
    line = lambda ps, m, col: '<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>' % (col, ' '.join('%.1f,%.1f' % (X(x), Y(y, m)) for x, y in ps)) + \
        ''.join('<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (X(x), Y(y, m), col) for x, y in ps)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>' % (w, h)]
    out.append('<text x="%d" y="18">%s: %d hosts, seconds until all are ACTIVE (blue, left; dashed: linear) and CPU-ms per server (red, right)</text>' % (left, R['database'], R['hosts']))
    for i in range(6):
        out.append('<text x="%.0f" y="%d" text-anchor="middle">%d</text>' % (X(mx * i / 5), h - bottom + 18, mx * i / 5))
        out.append('<text x="%d" y="%.0f" text-anchor="end">%.0f</text>' % (left - 6, Y(my * i / 5, my) + 4, my * i / 5))
        out.append('<text x="%d" y="%.0f">%.1f</text>' % (w - left + 6, Y(mc * i / 5, mc) + 4, mc * i / 5))
        out.append('<line x1="%d" x2="%d" y1="%.0f" y2="%.0f" stroke="#ddd"/>' % (left, w - left, Y(my * i / 5, my), Y(my * i / 5, my)))
    first = pts[1]
    out.append('<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#36c" stroke-dasharray="5 4"/>' % (X(0), Y(0, my), X(mx), Y(min(first[1] / first[0] * mx, my), my)))
    out += [line(pts, my, '#36c'), line(cpu, mc, '#c33'), '<text x="%d" y="%d" text-anchor="middle">servers</text></svg>' % (w // 2, h - 10)]
    with open(path, 'w') as f: f.write('\n'.join(out))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('allod'); ap.add_argument('--hosts', type=int, default=1000); ap.add_argument('--servers', type=int, default=50000)
    ap.add_argument('--database', choices=['sqlite', 'postgresql'], default='sqlite'); ap.add_argument('--out', default='bench')
    ap.add_argument('--batch', type=int, default=1, help='servers per POST (min_count); 1 = a request each'); ap.add_argument('--width', type=int, help='requests at a time; on SQLite 32, on PostgreSQL, where commits wait together, 96')
    ap.add_argument('--deadline', type=int, default=1800); ap.add_argument('--keep', action='store_true', help='leave the state directory')
    ap.add_argument('--only', default='storm,drain,restart', help='phases after the storm: drain, restart')
    a = ap.parse_args(); a.allod = os.path.realpath(a.allod); a.width = a.width or (96 if a.database == 'postgresql' else 32)
    a.steps = sorted({n for n in (1000, 2000, 5000, 10000, 20000, 30000, 40000) if n < a.servers} | {a.servers})
    dir = tempfile.mkdtemp(prefix='allod-storm-'); os.chmod(dir, 0o755)
    R = {'when': time.strftime('%FT%TZ', time.gmtime()), 'database': a.database}
    out = os.path.join(a.out, 'storm-' + a.database)
    def save():
        with open(out + '.json', 'w') as f: json.dump(R, f, indent=1)
    cloud = None
    # As SIGTERM: in Python 3.11 the cancellation that asyncio makes of it may be swallowed.
    signal.signal(signal.SIGINT, ended)
    try:
        cloud = Allod(a, dir); R['cold_start_s'] = round(cloud.start(), 2)
        os.environ['SSL_CERT_FILE'] = cloud.state + '/ca.crt'
        async def run():
            root, c, made = await storm(a, cloud, R, save)
            svg(R, out + '.svg')
            if 'drain' in a.only: await drain(a, cloud, root, R, made); save()
            if 'restart' in a.only: await restart(a, cloud, root, c, R, made); save()
        asyncio.run(run())
    finally:
        if cloud: cloud.down()
        if a.keep: print('state kept in ' + dir)
        else: shutil.rmtree(dir, ignore_errors=True)


if __name__ == '__main__':
    main()
