#!/usr/bin/env python3
"""`allod probe` against a cloud that runs: `probe.py ALLOD [--server ALLOD] [--agent FILE] [--image IMAGE] [--kills N] [--only WORD]`.

simulated  hosts that are simulated: iterations of the control scenario; kill -9 at each step, at N moments of it, four probes at
           once in one project, each followed by cleanup: what its administrator sees in all services is what was there before
real       (with --image) QEMU guests and OVN in a network namespace of its own: a whole iteration of the default scenario with
           2 networks and 4 guests, its wall time, and the figures of every step; kill -9 in the middle, then cleanup; so for each
           way to boot of --boot

Needs root for `real`. Leaves nothing behind.
"""
import argparse, concurrent.futures, glob, json, os, random, shutil, subprocess, sys, tempfile, time

from common import Failed, open_, sh, until

KINDS = [('network', 'networks'), ('network', 'subnets'), ('network', 'routers'), ('network', 'ports'), ('network', 'ips'),
         ('network', 'security_groups'), ('network', 'security_group_rules'), ('image', 'images')]
ALL = [('compute', 'servers'), ('block_storage', 'volumes'), ('block_storage', 'snapshots')]
PARALLEL = 4


class Cloud:
    def __init__(self, a, work, *more):
        self.server = os.path.abspath(a.server or a.allod)
        self.allod, self.agent, self.work, self.state = os.path.abspath(a.allod), a.agent, work, os.path.join(work, 'state')
        self.begin = time.time()
        sh(self.server, 'up', '--state', self.state, '--listen', '127.0.0.1:0', '--detach', *more, timeout=240)
        self.connect()

    def connect(self):
        self.env = {**{k: v for k, v in os.environ.items() if not k.startswith('OS_')}, 'OS_CLIENT_CONFIG_FILE': f'{self.state}/clouds.yaml'}
        os.environ['OS_CLIENT_CONFIG_FILE'] = self.env['OS_CLIENT_CONFIG_FILE']
        import openstack
        self.demo, self.admin = openstack.connect(cloud='allod'), openstack.connect(cloud='allod-admin')
        # The default group of a project comes when it is first asked for.
        for project in (self.demo, self.admin): list(project.network.security_groups())

    def say(self, text): print(f'{time.time() - self.begin:7.1f} s  {text}', flush=True)

    def has(self):
        """Everything in all services, as the administrator sees it; key pairs are their owner's alone."""
        a = self.admin
        found = {kind: sorted(x.id for x in getattr(getattr(a, service), kind)()) for service, kind in KINDS}
        found.update({kind: sorted(x.id for x in getattr(getattr(a, service), kind)(all_projects=True)) for service, kind in ALL})
        found['keypairs'] = sorted(x.name for x in self.demo.compute.keypairs())
        used = [a.placement.get(f'/resource_providers/{p.id}/usages').json()['usages'] for p in a.placement.resource_providers()]
        found['allocations'] = [sum(u.values()) for u in used if sum(u.values())]
        return found

    def same(self, before, what):
        """Placement hears of a server's end a moment later."""
        try: until(what, lambda: self.has() == before, 20)
        except Failed as e:
            now = self.has()
            raise Failed(f'{e}; there is: { {k: v for k, v in now.items() if v != before[k]} }')

    def command(self, *args, state='probe'):
        agent = ['--agent', self.agent] if self.agent else []
        return [self.allod, 'probe', '--cloud', 'allod', '--state', f'{self.work}/{state}', *agent, *args]

    def probe(self, *args, timeout=1800):
        """Iterations as JSON."""
        p = subprocess.run(self.command('--json', *args), capture_output=True, text=True, env=self.env, timeout=timeout)
        if p.returncode not in (0, 1): raise Failed(f'probe: exit {p.returncode}: {p.stderr[-800:]}')
        return p.returncode, [json.loads(line) for line in p.stdout.splitlines()]

    def killed(self, step, delay, *args, state='probe'):
        """Killed -9 when it says that a step begins, a while after that. Whether it lived until then, and what stood in its journal."""
        p = subprocess.Popen(self.command('--verbose', *args, state=state), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=self.env)
        try:
            for line in p.stderr:
                if line.startswith(f'step {step} '):
                    time.sleep(delay)
                    alive = p.poll() is None
                    p.kill(); p.wait()
                    return alive, sum(open_(j).count('"make"') - open_(j).count('"gone"') for j in glob.glob(f'{self.work}/{state}/*.jsonl'))
            raise Failed(f'it did not come to {step}')
        finally: p.kill(); p.wait(); p.stderr.close()

    def cleanup(self, state='probe'):
        p = subprocess.run([self.allod, 'probe', 'cleanup', '--state', f'{self.work}/{state}', '--json'], capture_output=True, text=True, env=self.env, timeout=600)
        if p.returncode or json.loads(p.stdout): raise Failed(f'cleanup: exit {p.returncode}: {p.stdout[-800:]} {p.stderr[-800:]}')

    def down(self): subprocess.run([self.server, 'down', '--state', self.state, '--purge'], capture_output=True, timeout=120)


def told(iteration):
    return [f"{r['op']} {r.get('name', '')}: {r['class']}: {r.get('message')}" for r in iteration['records'] if r['class'] not in ('ok', 'skipped')]


def figures(c, iteration):
    steps = {}
    for r in iteration['records']: steps.setdefault(r['step'], []).append(r)
    for step, records in steps.items():
        times = sorted(r['us'] / 1e6 for r in records if r['class'] != 'skipped')
        if not times: print(f'    {step:<24} skipped: {records[0].get("message")}'); continue
        line = f'    {step:<24} {len(times):>3} × median {times[len(times) // 2]:8.3f} s, longest {times[-1]:8.3f} s'
        measures = {}
        for r in records:
            for m in r.get('measures', []): measures.setdefault((m['name'], m['unit']), []).append(m['value'])
        line += ''.join(f', {n} {sorted(v)[len(v) // 2]:.3g} {u if u != "1" else ""}'.rstrip() for (n, u), v in measures.items())
        print(line, flush=True)


def simulated(a, work):
    c = Cloud(a, work, '--sim-hosts', '5')
    try:
        if not list(c.admin.image.images()):
            image = c.admin.image.create_image(name='tiny', data=b'x' * 1024, disk_format='raw', container_format='bare', visibility='public', wait=True)
            c.say(f'image {image.name}')
        before = c.has()
        args = ['--scenario', 'control']
        rc, iterations = c.probe(*args, '-n', '3', '--output', f'{work}/out')
        for i in iterations:
            i = i['iteration']
            if told(i): raise Failed('\n'.join(told(i)))
        if rc or len(iterations) != 3: raise Failed(f'exit {rc}, {len(iterations)} iterations')
        c.same(before, 'nothing is left')
        last = iterations[-1]['iteration']
        c.say(f"3 iterations, {last['calls']} calls in {last['us'] / 1e6:.2f} s in the last")
        if '<testsuite' not in open_(f'{work}/out/report.xml'): raise Failed('no JUnit report')
        steps = list(dict.fromkeys(r['step'] for r in last['records']))
        jobs = [(step, random.choice((0, .005, .02, .05))) for step in steps for _ in range(a.kills)]

        def job(n, step, delay):
            alive, open_entries = c.killed(step, delay, *args, state=f'killed-{n}')
            c.cleanup(f'killed-{n}')
            return alive, open_entries
        kills, ended, made = 0, 0, 0
        with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
            for at in range(0, len(jobs), PARALLEL):
                some = jobs[at:at + PARALLEL]
                for alive, entries in pool.map(lambda j: job(*j), [(at + i, *j) for i, j in enumerate(some)]):
                    kills += alive; ended += not alive; made += entries
                c.same(before, f'nothing is left after kills at {[s for s, _ in some]}')
        c.say(f'{kills} kills at {len(steps)} steps ({ended} more had just ended), {made} things in their journals: nothing is left after cleanup')
    finally: c.down()


def real(a, work):
    with open(f'{work}/allod.toml', 'w') as f: f.write('bcrypt_rounds = 4\n')
    c = Cloud(a, work, '--config', f'{work}/allod.toml')
    try:
        c.say('cloud is up')
        c.admin.image.create_image(name='mini', filename=os.path.abspath(a.image), disk_format='qcow2', container_format='bare', visibility='public',
                                   wait=True, validate_checksum=False)
        # Five guests of a machine that has no hardware for it.
        flavor = a.flavor or c.admin.compute.create_flavor(name='probe', ram=256, vcpus=1, disk=1).name
        before = c.has()
        common = ['--set', 'image=mini', '--set', f'flavor={flavor}', '--set', 'user=root', '--set', 'networks=2', '--set', 'guests=4']
        for boot in a.boot.split(','):
            c.say(f'guests boot from: {boot}')
            args = [*common, '--set', f'boot={boot}']
            rc, iterations = c.probe(*args, '-n', str(a.iterations), '--output', a.output or f'{work}/out')
            for one in iterations:
                i = one['iteration']
                c.say(f"iteration {i['number']}: {i['us'] / 1e6:.1f} s, {len(i['records'])} operations, {i['calls']} calls, {len(told(i))} failed")
                figures(c, i)
                for text in told(i): print(f'    FAILED {text}')
                for suspect in one['told']['suspects']: print(f'    suspect {suspect}')
            if rc: raise Failed(f'exit {rc}')
            c.same(before, 'nothing is left')
            alive, entries = c.killed('jump-active', 2, *args)
            if not alive: raise Failed('it ended before it could be killed')
            c.cleanup(); c.same(before, 'nothing is left after a kill while guests booted')
            c.say(f'killed while guests booted, with {entries} things in its journal: nothing is left after cleanup')
    except BaseException:
        for log in sorted(os.listdir(c.state + '/log')): print(f'--- {log}'); print(''.join(open(f'{c.state}/log/{log}', errors='replace').readlines()[-25:]))
        raise
    finally: c.down()


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('allod'); ap.add_argument('--server', default=''); ap.add_argument('--agent', default=''); ap.add_argument('--image', default=''); ap.add_argument('--kills', type=int, default=1)
    ap.add_argument('--flavor', default=''); ap.add_argument('--iterations', type=int, default=1); ap.add_argument('--output', default='')
    ap.add_argument('--boot', default='image,volume,implicit-volume', help='values of boot, with commas')
    ap.add_argument('--only', default=''); ap.add_argument('--inside', default='')
    a = ap.parse_args()
    a.agent = os.path.abspath(a.agent) if a.agent else ''
    work = a.inside or tempfile.mkdtemp(prefix='allod-probe-'); os.chmod(work, 0o711)
    try:
        if a.inside:
            sh('ip', 'link', 'set', 'lo', 'up'); real(a, work); return 0
        for name in ('simulated', 'real'):
            if a.only and a.only != name or name == 'real' and not a.image: continue
            print(f'== {name}', flush=True)
            if name == 'simulated': simulated(a, work); continue
            ns = f'allod-probe-{os.getpid()}'
            sh('ip', 'netns', 'add', ns)
            place = os.path.join(work, 'real'); os.mkdir(place)
            try:
                if subprocess.run(['ip', 'netns', 'exec', ns, sys.executable, __file__, *sys.argv[1:], '--inside', place]).returncode: raise Failed('real')
            finally: sh('ip', 'netns', 'del', ns, ok=False)
        print('passed'); return 0
    except Failed as e:
        print(f'FAILED: {e}', flush=True); return 1
    finally:
        if not a.inside: shutil.rmtree(work, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(main())
