#!/usr/bin/env python3
"""Compares the verdicts of `allod certify` with those of the unmodified upstream scripts, and shows the reports to upstream's code.

    certify.py ALLOD [--stub STUBCLOUD] [--clusters STUBCLUSTER] [--clouds CLOUDS_YAML --cloud NAME]… [--monitor] [--kills N] [--table FILE]

ALLOD        the binary that certifies (the small one of `--features tools` will do)
--server     binary of the cloud to judge (default: none)
--stub       the example `stubcloud` of crates/certify: a cloud per broken requirement, all judged by both
--clusters   the example `stubcluster`: the same for the scope KaaS
--clouds     judge a cloud that runs, as --cloud NAME
--admin      the administrator's entry of the first of them (of --server's, if given): it is judged once more when it has what the
             standards ask for, when some of that is wrong, and as the administrator sees it (it stays as it is then)
--standards  checkout of github.com/SovereignCloudStack/standards (default: cloned at the commit below)
--python     interpreter with upstream's pinned requirements for clouds (default: a venv is made); --kaas-python: for clusters
--monitor    run upstream's compliance monitor on a PostgreSQL of its own and upload a report to it
--kills N    kill a run -9 at N moments; after cleanup nothing may be left in the cloud
--table      where differences are written (default: stdout only)

Upstream's modules are imported and called as its script calls them, in one process; towards the stub, its waiting is not
waited for. Its scripts about clusters are run as they are, with the arguments of its scope; the names of GitHub, kubernetes.io
and MITRE are resolved to the stub, whose certificate SSL_CERT_FILE makes known to both sides, and a program of the stub
stands in for sonobuoy and notes how each side calls it. Exit code 0 only if every difference is one that KNOWN explains.
"""
import argparse, collections, glob, json, os, select, shlex, shutil, subprocess, sys, tempfile, time

from common import Failed, until
from monitor import Monitor, interpreter as monitor_interpreter

HERE = os.path.dirname(os.path.abspath(__file__))
COMMIT = '077174d9'
URL = 'https://github.com/SovereignCloudStack/standards'
ABSENT = {'scs-0101-flavor-property', 'scs-0101-image-property', 'scs-0101-rngd'}
GUEST = ('scs-0101-entropy-avail', 'scs-0101-fips-test')
# (variant, case) -> why upstream says something else. Each is a defect of upstream's check, or a thing it cannot see.
NULL = 'a property that is null, not absent, breaks upstream with an AttributeError (images from Glance never have one)'
LINE = 'the Python client sends the end of the line of a tokenFile as part of the token; kubectl does not'
KNOWN = {
    ('scs-0102-prop-image_source.wrong2', 'scs-0102-prop-image_source'): NULL,
    ('scs-0102-prop-image_source.wrong2', 'scs-0104-source-ubuntu-2404'): NULL,
    ('scs-0102-prop-image_build_date.wrong1', 'scs-0102-prop-image_build_date'): NULL,
    ('scs-0102-prop-image_build_date.wrong1', 'scs-0102-image-recency'): NULL,
    ('version-policy-check.token-beside-line', 'version-policy-check'): LINE,
    ('version-policy-check.token-beside-line', 'beyond-0214-node-labels'): LINE,
    ('version-policy-check.token-beside-line', 'beyond-0211-default-storage-class'): LINE,
    ('beyond-0211-default-storage-class.another-says-nothing', 'beyond-0211-default-storage-class'):
        'a storage class without the annotation is no default; upstream breaks with a KeyError',
}
# The same wherever it comes up: (case, upstream, allod) -> why.
EVERYWHERE = {
    ('beyond-0211-default-storage-class', 'FAIL', 'ABORT'): 'upstream ends with 1 for a cluster that does not answer, and for one that is wrong',
}


def known(name, case, theirs, mine):
    return KNOWN.get((name, case)) or EVERYWHERE.get((case, theirs, mine))


# What runs inside upstream's interpreter: stdin names (cloud, ids) pairs, stdout answers them.
DRIVER = r'''
import contextlib, io, json, logging, sys, time
fast = sys.argv[1] == 'fast'
if fast:
    now = [time.time()]
    time.sleep = lambda s: None
import openstack_test
if len(sys.argv) > 2:
    # As `allod certify --guest-mirror`: where the guest's packages come from. Its other words are upstream's.
    import re
    from scs_0101_entropy import entropy_check
    lead = {'primary': sys.argv[2], 'security': sys.argv[2].rstrip('/') + '-security/'}
    known = entropy_check.SERVER_USERDATA
    for distro in known:
        known[distro] = re.sub(r'(?s)(primary|security):(.*?uri: )\S+', lambda m: f'{m[1]}:{m[2]}{lead[m[1]]}', known[distro])
for line in sys.stdin:
    cloud, ids = json.loads(line)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            openstack_test.main(['-c', cloud, *ids])
    except BaseException as e:
        err.write(repr(e))
    sys.__stdout__.write(json.dumps([out.getvalue(), err.getvalue()[-2000:]]) + '\n')
    sys.__stdout__.flush()
'''

# The same for scripts about clusters: stdin names (script, arguments, port of the stub), stdout answers exit code and output.
KAAS_DRIVER = r'''
import contextlib, io, json, os, runpy, socket, sys, tempfile, time
time.sleep = lambda s: None
resolve, port = socket.getaddrinfo, None
def led(host, service, *more, **named):
    if host in ('api.github.com', 'kubernetes.io', 'cveawg.mitre.org'): host, service = '127.0.0.1', port
    return resolve(host, service, *more, **named)
socket.getaddrinfo = led
for line in sys.stdin:
    script, sys.argv[1:], port = json.loads(line)
    sys.argv[0], path = script, sys.path[:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    out, code = io.StringIO(), 0
    with tempfile.TemporaryFile('w+') as err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: runpy.run_path(script, run_name='__main__')
        except SystemExit as e: code = e.code or 0
        except BaseException as e: code = 1; err.write(repr(e))
        err.flush(); err.seek(0); said = err.read()[-2000:]
    sys.path[:] = path
    sys.__stdout__.write(json.dumps([code, out.getvalue(), said]) + '\n')
    sys.__stdout__.flush()
'''


def checkout(a, work):
    if a.standards: return os.path.abspath(a.standards)
    place = os.path.join(work, 'standards')
    subprocess.run(['git', 'clone', '-q', URL, place], check=True)
    subprocess.run(['git', '-C', place, 'checkout', '-q', COMMIT], check=True)
    return place


def interpreter(given, tests, work, *files):
    if given: return given
    venv = tempfile.mkdtemp(prefix='venv-', dir=work)
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    wanted = [x for f in files for x in ('-r', os.path.join(tests, f))]
    subprocess.run([f'{venv}/bin/pip', 'install', '-q', '--disable-pip-version-check', *wanted], check=True)
    return f'{venv}/bin/python'


class Process:
    """Upstream's code in its interpreter, kept running: a line of JSON in, a line of JSON out."""
    def __init__(self, python, code, *args, cwd, **env):
        env = {**os.environ, 'PYTHONWARNINGS': 'ignore', 'PYTHONDONTWRITEBYTECODE': '1', **env}
        for name in [n for n in env if n.startswith('OS_') and n != 'OS_CLIENT_CONFIG_FILE']: del env[name]
        self.p = subprocess.Popen([python, '-c', code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                  text=True, env=env, cwd=cwd)

    def ask(self, what, *question):
        self.p.stdin.write(json.dumps(question) + '\n'); self.p.stdin.flush()
        ready, _, _ = select.select([self.p.stdout], [], [], 900)
        line = self.p.stdout.readline() if ready else self.p.kill()
        if not line: raise Failed(f'upstream {"died" if ready else "does not come back"} at {what}')
        return json.loads(line)

    def end(self):
        self.p.stdin.close(); self.p.wait(30)


def verdicts(out):
    return dict(l.rsplit(': ', 1) for l in out.splitlines() if l.rsplit(': ', 1)[-1] in ('PASS', 'FAIL', 'ABORT'))


class Upstream(Process):
    """Upstream's script about clouds."""
    def __init__(self, python, tests, clouds, fast, *mirror):
        super().__init__(python, DRIVER, 'fast' if fast else 'slow', *mirror, cwd=f'{tests}/iaas', OS_CLIENT_CONFIG_FILE=clouds, PYTHONPATH=f'{tests}/iaas',
                         AWS_MAX_ATTEMPTS='1', AWS_EC2_METADATA_DISABLED='true')

    def __call__(self, cloud, ids):
        out, err = self.ask(cloud, cloud, ids)
        found = verdicts(out)
        if not found: raise Failed(f'upstream said nothing of {cloud}: {err}')
        return found


class UpstreamOfClusters(Process):
    """Upstream's scripts about clusters: those of its scope, and the two that no version asks for (any more)."""
    def __init__(self, python, tests, stub):
        self.dir = os.path.join(stub, 'upstream')
        # One of the scripts writes beside itself.
        shutil.copytree(tests, self.dir)
        code = 'import yaml, json; print(json.dumps(yaml.safe_load(open("scs-compatible-kaas.yaml"))["scripts"]))'
        scripts = json.loads(subprocess.run([python, '-c', code], cwd=self.dir, check=True, capture_output=True, text=True).stdout)
        self.scripts = [(s['executable'], s['args']) for s in scripts if 'executable' in s]
        super().__init__(python, KAAS_DRIVER, cwd=self.dir, SSL_CERT_FILE=f'{stub}/ca.pem', PATH=f'{stub}/bin:{os.environ["PATH"]}')

    def __call__(self, kubeconfig, port, output):
        found = {}
        for script, args in self.scripts:
            words = shlex.split(args.format(kubeconfig=kubeconfig, execution_mode='parallel', subject_root=output))
            code, out, err = self.ask(kubeconfig, script, words, port)
            if not verdicts(out): raise Failed(f'{script} said nothing of {kubeconfig}: exit {code}: {err}')
            found.update(verdicts(out))
        code, out, _ = self.ask(kubeconfig, './kaas/scs_0214_node_distribution_RETIRED/k8s_node_distribution_check.py', ['-k', kubeconfig], port)
        found['beyond-0214-node-labels'] = verdicts(out).get('node-distribution-check', 'ABORT')
        code, _, _ = self.ask(kubeconfig, './kaas/k8s-default-storage-class/k8s-default-storage-class-check.py', ['-k', kubeconfig], port)
        found['beyond-0211-default-storage-class'] = 'FAIL' if code else 'PASS'
        return found


def ours(allod, clouds, cloud, work, *more):
    env = {k: v for k, v in os.environ.items() if not k.startswith('OS_')}
    env['OS_CLIENT_CONFIG_FILE'] = clouds
    command = [allod, 'certify', '--cloud', cloud, '--recommended', '--json', '--journals', f'{work}/journals', *more]
    p = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200)
    if p.returncode not in (0, 1): raise Failed(f'{" ".join(command)}: {p.stderr[-600:]}')
    return json.loads(p.stdout)


class Table:
    def __init__(self):
        self.rows, self.compared, self.variants = [], 0, 0

    def add(self, name, upstream, report):
        self.variants += 1
        notes = {r['id']: '; '.join(n['text'] for n in r['notes']) for r in report['results']}
        for r in report['results']:
            theirs = upstream.get(r['id'])
            if theirs is None: continue
            self.compared += 1
            if theirs == r['verdict']: continue
            self.rows.append((name, r['id'], theirs, r['verdict'], known(name, r['id'], theirs, r['verdict']), notes[r['id']]))
            print(f'  {name}: {r["id"]}: upstream {theirs}, allod {r["verdict"]}', flush=True)

    def text(self):
        lines = ['| cloud | case | upstream | allod | why |', '|---|---|---|---|---|']
        lines += [f'| {n} | {c} | {u} | {o} | {why or "NOT EXPLAINED: " + note} |' for n, c, u, o, why, note in self.rows]
        return '\n'.join(lines) + f'\n\n{self.compared} verdicts on {self.variants} clouds and clusters compared, {len(self.rows)} differ\n'


def chosen(a, variants):
    part, of = (int(n) for n in a.part.split('/'))
    return [v for v in variants if a.only in v['name']][part - 1::of]


def told(index, wanted, table):
    if index % 25 == 24 or index + 1 == len(wanted): print(f'  {index + 1} of {len(wanted)}, {len(table.rows)} differences', flush=True)


def against_stub(a, python, tests, work, table):
    place = os.path.join(work, 'stub'); os.mkdir(place)
    stub = subprocess.Popen([a.stub, place], stdout=subprocess.PIPE, text=True)
    try:
        if stub.stdout.readline().strip() != 'ready': raise Failed('the stub does not start')
        clouds, variants = f'{place}/clouds.yaml', json.load(open(f'{place}/variants.json'))
        upstream, wrong = Upstream(python, tests, clouds, True), []
        wanted = chosen(a, [{'name': 'right', 'case': '', 'expect': ''}, *variants])
        for index, v in enumerate(wanted):
            guest = v['case'] in GUEST
            more = ['--storage-seconds', '2', *([] if guest else ['--no-guest'])]
            report = ours(a.allod, clouds, v['name'], work, *more)
            # A case that no version of today asks for is run by its id.
            if v['case'] and all(r['id'] != v['case'] for r in report['results']):
                report['results'] += ours(a.allod, clouds, v['name'], work, *more, '--tests', v['case'])['results']
            ids = [r['id'] for r in report['results']]
            theirs = upstream(v['name'], ids)
            table.add(v['name'], theirs, report)
            if v['case'] and theirs.get(v['case']) != v['expect'] and not known(v['name'], v['case'], theirs.get(v['case']), v['expect']):
                wrong.append((v['name'], theirs.get(v['case']), v['expect']))
            told(index, wanted, table)
        upstream.end()
        for name, theirs, expect in wrong: print(f'{name}: upstream says {theirs}, the stub expects {expect}')
        return not wrong
    finally:
        stub.kill(); stub.wait()


def ours_of_cluster(allod, stub, variant, output):
    base = f'https://127.0.0.1:{variant["port"]}'
    env = {**os.environ, 'SSL_CERT_FILE': f'{stub}/ca.pem', 'PATH': f'{stub}/bin:{os.environ["PATH"]}'}
    command = [allod, 'certify', '--scope', 'kaas', '--subject', 'x-1.36', '--kubeconfig', f'{stub}/{variant["name"]}/kubeconfig.yaml', '--beyond', '--json',
               '--output', output, '--kubernetes-releases', f'{base}/repos/kubernetes/kubernetes/releases?per_page=100',
               '--kubernetes-vulnerabilities', f'{base}/docs/reference/issues-security/official-cve-feed/index.json', '--kubernetes-records', f'{base}/api/cve']
    p = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    if p.returncode not in (0, 1): raise Failed(f'{" ".join(command)}: {p.stderr[-600:]}')
    report = json.loads(p.stdout)
    report['results'] += report['beyond']
    return report


def against_clusters(a, python, tests, work, table):
    """Both sides on clusters that are broken in one place; sonobuoy is called with the same words, too."""
    place = os.path.join(work, 'clusters'); os.mkdir(place)
    stub = subprocess.Popen([a.clusters, place], stdout=subprocess.PIPE, text=True)
    try:
        if stub.stdout.readline().strip() != 'ready': raise Failed('the stub does not start')
        upstream, wrong, calls = UpstreamOfClusters(python, tests, place), [], 0
        wanted = chosen(a, json.load(open(f'{place}/variants.json')))
        for index, v in enumerate(wanted):
            called = []
            def take(output):
                path = f'{place}/{v["name"]}/calls'
                called.append(sorted(l.replace(output, '') for l in open(path))); os.remove(path)
            report = ours_of_cluster(a.allod, place, v, f'{place}/a-{index}'); take(f'{place}/a-{index}')
            theirs = upstream(f'{place}/{v["name"]}/kubeconfig.yaml', v['port'], f'{place}/u-{index}'); take(f'{place}/u-{index}')
            if called[0] != called[1]: wrong.append(f'{v["name"]}: sonobuoy is called by allod with {called[0]}, by upstream with {called[1]}')
            calls += len(called[0])
            table.add(v['name'], theirs, report)
            if len(report['results']) != len(theirs): wrong.append(f'{v["name"]}: upstream judges {sorted(theirs)}')
            if v['case'] and theirs.get(v['case']) != v['expect'] and not known(v['name'], v['case'], theirs.get(v['case']), v['expect']):
                wrong.append(f'{v["name"]}: upstream says {theirs.get(v["case"])}, the stub expects {v["expect"]}')
            told(index, wanted, table)
        upstream.end()
        print('\n'.join([*wrong, f'sonobuoy: {calls} calls by each side']))
        return not wrong
    finally:
        stub.kill(); stub.wait()


def report_is_upstreams(a, python, tests, clouds, cloud, work):
    """Signature, bytes and meaning of a report, by ssh-keygen, PyYAML and upstream's library."""
    key, out = f'{work}/key', f'{work}/report'
    subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', 'csp', '-f', key], check=True)
    report = ours(a.allod, clouds, cloud, work, '--no-guest', '--output', out, '--sign', key, '--subject', 'a-cloud')
    with open(f'{work}/signers', 'w') as f: f.write('mail@csp.eu ' + ' '.join(open(f'{key}.pub').read().split()[:2]) + '\n')
    verify = ['ssh-keygen', '-Y', 'verify', '-f', f'{work}/signers', '-I', 'mail@csp.eu', '-n', 'report', '-s', f'{out}/report.yaml.sig']
    with open(f'{out}/report.yaml') as f: subprocess.run(verify, stdin=f, check=True, stdout=subprocess.DEVNULL)
    code = f'''
import sys, yaml, datetime, importlib.util
sys.path.insert(0, {tests!r})
from scs_cert_lib import load_spec, annotate_validity, evaluate
spec = importlib.util.spec_from_file_location('check', {tests!r} + '/scs-compliance-check.py'); check = importlib.util.module_from_spec(spec); spec.loader.exec_module(check)
text = open({out!r} + '/report.yaml').read()
doc = yaml.safe_load(text)
again = yaml.safe_dump(doc, default_flow_style=False, sort_keys=False, explicit_start=True)
assert again == text, 'PyYAML writes it differently'
assert isinstance(doc['checked_at'], datetime.datetime) and isinstance(doc['reference_date'], datetime.date)
results = {{}}
for invocation in doc['run']['invocations'].values():
    assert check.compute_results(invocation['stdout']) == invocation['results']
    results.update(invocation['results'])
scope = load_spec(yaml.safe_load(open({tests!r} + '/scs-compatible-iaas.yaml')))
annotate_validity(scope['timeline'], scope['versions'], datetime.date(2026, 11, 21))
print({{v: evaluate(results, t['targets']['main']) for v, t in scope['versions'].items() if t['_explicit_validity']}})
'''
    said = subprocess.run([python, '-c', code], capture_output=True, text=True)
    if said.returncode: raise Failed('upstream does not take the report: ' + said.stderr[-800:])
    print(f'report: signature verified, written as PyYAML writes it, evaluated by scs_cert_lib: {said.stdout.strip()}')
    return out, key, report


def to_monitor(a, tests, work, out, key):
    """Upstream's monitor takes the report."""
    root = os.path.dirname(tests)
    python = a.monitor_python or monitor_interpreter(root, work)
    hashed = subprocess.run([python, '-c', 'from passlib.hash import argon2; print(argon2.hash("geheim"))'], check=True, capture_output=True, text=True)
    kind, public = open(f'{key}.pub').read().split()[:2]
    bootstrap = json.dumps({'accounts': [{'subject': 'a-cloud', 'api_keys': [hashed.stdout.strip()],
                                          'keys': [{'public_key': public, 'public_key_type': kind, 'public_key_name': 'k'}]}]})
    monitor = Monitor(root, python, work, bootstrap)
    try:
        with open(f'{work}/password', 'w') as f: f.write('geheim\n')
        command = [a.allod, 'certify', 'upload', '--url', monitor.url, '--account', 'a-cloud', '--password-file', f'{work}/password', f'{out}/report.yaml']
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        again = subprocess.run(command, capture_output=True, text=True)
        if again.returncode == 0 or '409' not in again.stderr: raise Failed('the monitor took the same report twice')
        status = json.loads(monitor.get('/status?subject=a-cloud'))
        scope, = status['a-cloud'].values()
        results = {i: r['result'] for i, r in scope['results'].items()}
        expected = {r['id']: {'PASS': 1, 'ABORT': 0, 'FAIL': -1}[r['verdict']] for r in json.load(open(f'{out}/report.json'))['results']}
        if results != {i: v for i, v in expected.items()}: raise Failed(f'the monitor understood otherwise: {set(results.items()) ^ set(expected.items())}')
        print(f'monitor: took the report, refused it a second time, shows the same {len(results)} results')
    except Exception:
        print(monitor.told()); raise
    finally: monitor.stop()


LEFT = '''
import openstack, sys
c = openstack.connect(cloud=sys.argv[1])
lists = {'server': c.compute.servers(), 'network': c.network.networks(), 'subnet': c.network.subnets(), 'router': c.network.routers(),
         'group': c.network.security_groups(), 'volume': c.block_storage.volumes(), 'image': c.image.images(), 'port': c.network.ports()}
own = {i.id for i in c.network.networks()}
for kind, found in lists.items():
    for i in found:
        if (i.name or '').startswith('_scs-') or kind == 'volume' and not i.name: print(kind, i.name, i.id)
'''


def killed(a, python, clouds, cloud, work, kills):
    """kill -9 at one moment after the other; after `cleanup` nothing is left."""
    env = {k: v for k, v in os.environ.items() if not k.startswith('OS_')}
    env['OS_CLIENT_CONFIG_FILE'] = clouds
    journals, made = f'{work}/killed', 0
    for index in range(kills):
        p = subprocess.Popen([a.allod, 'certify', '--cloud', cloud, '--beyond', '--journals', journals], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(.15 + index * .15); p.kill(); p.wait()
        for path in glob.glob(f'{journals}/*.jsonl'): made += open(path).read().count('"make"')
        cleanup = subprocess.run([a.allod, 'certify', 'cleanup', '--cloud', cloud, '--journals', journals], env=env, capture_output=True, text=True)
        if cleanup.returncode: raise Failed(f'cleanup after kill {index}: {cleanup.stdout}{cleanup.stderr}')
        def nothing():
            left = subprocess.run([python, '-W', 'ignore', '-c', LEFT, cloud], env=env, capture_output=True, text=True, check=True).stdout
            if left: raise Failed(f'left after kill {index}: {left}')
            return True
        until(f'nothing left after kill {index}', nothing, 30)
    if not made or glob.glob(f'{journals}/*.jsonl'): raise Failed('the kills came too early or journals are left')
    print(f'kill -9: {kills} kills, {made} things journalled, none left after cleanup')


def compare(a, python, tests, work, table, cloud, state=''):
    """All automatic cases but the guest's, by both, on a cloud that runs."""
    upstream, name = Upstream(python, tests, a.clouds, False), ' '.join(filter(None, (cloud, state)))
    report = ours(a.allod, a.clouds, cloud, work, '--no-guest')
    begun = time.time()
    theirs = upstream(cloud, [r['id'] for r in report['results']])
    count = collections.Counter(r['verdict'] for r in report['results'])
    print(f'{name}: {len(report["results"])} cases ({", ".join(f"{n} {v}" for v, n in sorted(count.items()))}), '
          f'allod {report["seconds"]:.2f} s and {report["calls"]} calls, upstream {time.time() - begun:.1f} s')
    table.add(name, theirs, report)
    upstream.end()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('allod'); p.add_argument('--server'); p.add_argument('--stub'); p.add_argument('--clusters'); p.add_argument('--clouds'); p.add_argument('--cloud', action='append', default=[]); p.add_argument('--admin')
    p.add_argument('--standards'); p.add_argument('--python'); p.add_argument('--kaas-python'); p.add_argument('--monitor', action='store_true'); p.add_argument('--kills', type=int, default=0); p.add_argument('--monitor-python')
    p.add_argument('--table'); p.add_argument('--only', default='', help='only variants whose name contains this')
    p.add_argument('--part', default='1/1', help='only every Nth variant, from the Kth: K/N')
    a = p.parse_args()
    a.allod = os.path.abspath(a.allod)
    work, begin, ok, server = tempfile.mkdtemp(prefix='allod-certify-'), time.time(), False, None
    try:
        tests = os.path.join(checkout(a, work), 'Tests')
        table, ok = Table(), True
        if a.cloud or a.server or a.stub: python = interpreter(a.python, tests, work, 'requirements.txt', 'iaas/requirements.txt')
        if a.server:
            server = f'{work}/state'
            with open(f'{work}/allod.toml', 'w') as f: f.write('bcrypt_rounds = 4\n')
            subprocess.run([a.server, 'up', '--state', server, '--config', f'{work}/allod.toml', '--listen', '127.0.0.1:0', '--sim-hosts', '2', '--detach'],
                           check=True, stdout=subprocess.DEVNULL)
            a.clouds, a.cloud = f'{server}/clouds.yaml', ['allod', *a.cloud]
        for cloud in a.cloud:
            compare(a, python, tests, work, table, cloud)
            out, key, _ = report_is_upstreams(a, python, tests, a.clouds, cloud, work)
            if a.monitor: to_monitor(a, tests, work, out, key); a.monitor = False
            if a.kills: killed(a, python, a.clouds, cloud, work, a.kills); a.kills = 0
            shutil.rmtree(out); os.remove(key); os.remove(f'{key}.pub')
            if a.admin:
                for state in ('dressed', 'broken'):
                    subprocess.run([python, '-W', 'ignore', f'{HERE}/states.py', a.admin, state], env={**os.environ, 'OS_CLIENT_CONFIG_FILE': a.clouds}, check=True)
                    compare(a, python, tests, work, table, cloud, state)
                compare(a, python, tests, work, table, a.admin); a.admin = None
        if a.stub: ok = against_stub(a, python, tests, work, table) and ok
        if a.clusters:
            python = interpreter(a.kaas_python, tests, work, 'requirements.txt', 'kaas/requirements.txt')
            ok = against_clusters(a, python, tests, work, table) and ok
        print(table.text())
        if a.table:
            with open(a.table, 'w') as f: f.write(table.text())
        ok = ok and all(why for *_, why, _ in table.rows) and table.compared > 0
    except (Failed, subprocess.CalledProcessError) as e: print(f'certify: {e}'); ok = False
    finally:
        if server: subprocess.run([a.server, 'down', '--state', server, '--purge'], stdout=subprocess.DEVNULL)
        shutil.rmtree(work, ignore_errors=True)
    print(f'certify: {"ok" if ok else "FAILED"} in {time.time() - begin:.0f} s')
    sys.exit(0 if ok else 1)


if __name__ == '__main__': main()
