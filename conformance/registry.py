#!/usr/bin/env python3
"""The same reports to upstream's compliance monitor, run unmodified, and to `allod registry`: the same answers.

    registry.py ALLOD [--standards DIR] [--monitor-python PYTHON] [--reports N] [--seed N] [--database URL]

ALLOD             the whole binary
--standards       checkout of github.com/SovereignCloudStack/standards (default: cloned at the commit of certify.py)
--monitor-python  interpreter with the monitor's pinned requirements (default: a venv is made)
--reports         how many reports are made and sent to both
--database        of the registry (default: SQLite)

Both read the same bootstrap file. Compared are status codes of good and of bad uploads, `/status` of all and of each subject,
`/reports`, `/results` and approvals, and which pages there are. Where upstream breaks with a 500, ours must answer a 4xx.
"""
import argparse, base64, datetime, json, os, random, shutil, subprocess, sys, tempfile, time, urllib.error, urllib.request, uuid

from certify import checkout
from common import Failed, until
from monitor import Monitor, interpreter

IAAS, KAAS = '50393e6f-2ae1-4c5c-a62c-3b75f2abef3f', '1fffebe6-fd4b-44d3-a36c-fc58b4bb0180'
SUBJECTS = ['alpha', 'beta', 'gamma', 'delta-1', 'delta-2', 'epsilon']
ACCOUNTS = [*SUBJECTS, 'tester', 'admin']
YAML, JSON = 'application/x-signed-yaml', 'application/x-signed-json'


class Keys:
    def __init__(self, work): self.work, self.count = work, 0

    def make(self, name):
        subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', name, '-f', f'{self.work}/{name}.key'], check=True)
        return open(f'{self.work}/{name}.key.pub').read().split()[:2]

    def sign(self, name, text, namespace='report'):
        path = f'{self.work}/report-{self.count}'; self.count += 1
        with open(path, 'w') as f: f.write(text)
        subprocess.run(['ssh-keygen', '-q', '-Y', 'sign', '-n', namespace, '-f', f'{self.work}/{name}.key', path], check=True, stderr=subprocess.DEVNULL)
        signature = open(f'{path}.sig').read()
        os.remove(path); os.remove(f'{path}.sig')
        return f'{signature}&{text}'


def bootstrap(python, keys):
    # Hashes that cost little: hundreds of logins are made.
    code = 'import sys; from passlib.hash import argon2\nfor n in sys.argv[1:]: print(argon2.using(time_cost=1, memory_cost=64, parallelism=1).hash(n))'
    hashes = subprocess.run([python, '-c', code, *ACCOUNTS], check=True, capture_output=True, text=True).stdout.split()
    accounts = []
    for name, hashed in zip(ACCOUNTS, hashes):
        kind, public = keys.make(name)
        account = {'subject': name, 'api_keys': [hashed], 'keys': [{'public_key': public, 'public_key_type': kind, 'public_key_name': 'primary'}]}
        if name == 'tester': account['roles'] = ['append_any']
        if name == 'admin': account['roles'] = ['read_any', 'approve', 'admin']
        if name in ('alpha', 'beta'): account['delegates'] = ['tester']
        if name.startswith('delta'): account['group'] = 'delta'
        accounts.append(account)
    # Upstream takes delegates only of accounts it has read already.
    accounts.sort(key=lambda x: x['subject'] not in ('tester', 'admin'))
    return json.dumps({'accounts': accounts}, indent=1)


def call(base, method, path, account=None, body=None, kind=None, accept='application/json'):
    headers = {'accept': accept}
    if account: headers['authorization'] = 'Basic ' + base64.b64encode(f'{account}:{account}'.encode()).decode()
    if kind: headers['content-type'] = kind
    request = urllib.request.Request(base + path, body.encode() if body is not None else None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as r: return r.status, r.headers.get_content_type(), r.read().decode()
    except urllib.error.HTTPError as e: return e.code, e.headers.get_content_type(), e.read().decode()


def report(subject, scope, at, results, old):
    run = {'uuid': str(uuid.UUID(int=random.getrandbits(128))), 'argv': ['x'], 'assignment': {'os_cloud': subject}, 'sections': None,
           'forced_version': None, 'forced_tests': None, 'invocations': {}}
    items = list(results.items()); half = len(items) // 2 or 1
    for part in (items[:half], items[half:]):
        if not part: continue
        name = str(uuid.UUID(int=random.getrandbits(128)))
        words = {1: 'PASS', 0: 'ABORT', -1: 'FAIL'}
        run['invocations'][name] = {'id': name, 'cmd': 'check', 'results': dict(part), 'rc': 0, 'stdout': [f'{i}: {words[r]}' for i, r in part],
                                    'stderr': ['ERROR: something', 'DEBUG: more'], 'info': 0, 'warning': 0, 'error': 1, 'critical': 0}
    document = {'spec': {'uuid': scope, 'name': 'x', 'url': 'https://x'}, 'checked_at': at, 'reference_date': str(at)[:10], 'subject': subject, 'run': run}
    if old:
        document['versions'] = {v: {i: {'result': r, 'invocation': 'x'} for i, r in items} for v in random.sample(['v3', 'v4', 'v5.1'], random.choice([1, 2]))}
    return document


def generated(count, cases, versions):
    """Reports of the last 14 months: whole runs and parts, most of them good, in any order."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    quality = dict(zip(SUBJECTS, [1, .995, .97, 1, .8, .99]))
    reports, seen = [], set()
    for _ in range(count):
        subject, scope = random.choice(SUBJECTS), random.choice([IAAS, IAAS, IAAS, KAAS])
        # Half of them in the last three weeks, where they count.
        days = random.choice([random.uniform(0, 21), random.uniform(0, 430)])
        at = now - datetime.timedelta(days=days)
        if random.random() < .5: at = at.replace(microsecond=0)
        if at in seen: continue
        seen.add(at)
        known = sorted(cases[scope])
        ids = random.choice([sorted(versions[scope]), known, random.sample(known, random.randint(1, len(known)))])
        good = quality[subject]
        results = {i: 1 if random.random() < good else random.choice([-1, 0, 0]) for i in ids}
        if random.random() < .1: results['scs-9999-unknown'] = 1
        reports.append(report(subject, scope, at, results, random.random() < .1 and scope == IAAS))
    return reports


def normal(status):
    """What both must say alike: not how a case is described in words."""
    for scopes in status.values():
        for scope in scopes.values():
            scope['testcases'] = {i: {k: v for k, v in t.items() if k in ('id', 'lifetime', 'attn')} for i, t in scope['testcases'].items()}
    return status


class Both:
    def __init__(self, upstream, ours): self.upstream, self.ours, self.compared, self.wrong = upstream, ours, 0, []

    def ask(self, what, *args, **kw):
        theirs, ours = call(self.upstream, *args, **kw), call(self.ours, *args, **kw)
        self.compared += 1
        better = theirs[0] == 500 and 400 <= ours[0] < 500
        if theirs[0] != ours[0] and not better: self.differ(f'{what}: upstream {theirs[0]} {theirs[2][:120]!r}, ours {ours[0]} {ours[2][:120]!r}')
        return theirs, ours

    def differ(self, text):
        self.wrong.append(text)
        if len(self.wrong) < 20: print(f'  DIFFERENT {text}', flush=True)

    def same(self, what, path, account=None, order=None):
        (code, _, theirs), (_, _, ours) = self.ask(what, 'GET', path, account)
        if code != 200: return
        theirs, ours = json.loads(theirs), json.loads(ours)
        if order:
            # Of a list that was cut, what has the last moment is any part of it.
            if len(theirs) == 100: theirs, ours = ([r for r in x if r['checked_at'] != x[-1]['checked_at']] for x in (theirs, ours))
            theirs.sort(key=order); ours.sort(key=order)
        if path.startswith('/status'): theirs, ours = normal(theirs), normal(ours)
        if theirs != ours: self.differ(f'{what}: {first(theirs, ours)}')
        return theirs


def first(a, b, place=''):
    """Where two documents differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *[k for k in b if k not in a]]:
            if a.get(key, '(absent)') != b.get(key, '(absent)'): return first(a.get(key, '(absent)'), b.get(key, '(absent)'), f'{place}.{key}')
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            if x != y: return first(x, y, f'{place}[{i}]')
    return f'{place}: upstream {str(a)[:160]}, ours {str(b)[:160]}'


def bad_uploads(both, keys, good):
    text = json.dumps(good, default=str)
    def without(*path):
        document = json.loads(text); inner = document
        for key in path[:-1]: inner = inner[key]
        del inner[path[-1]]
        return json.dumps(document)
    signed = keys.sign('alpha', text)
    cases = [
        ('no login', None, signed, YAML), ('wrong account', 'beta', signed, YAML), ('unknown account', 'nobody', signed, YAML),
        ('content type', 'alpha', signed, 'application/yaml'), ('no content type', 'alpha', signed, None),
        ('no signature', 'alpha', text, YAML), ('changed', 'alpha', signed.replace('PASS', 'pass'), YAML),
        ('namespace', 'alpha', keys.sign('alpha', text, 'file'), YAML), ('foreign subject', 'gamma', keys.sign('gamma', text), YAML),
        ('delegate of others', 'tester', keys.sign('tester', text.replace('"subject": "alpha"', '"subject": "gamma"')), YAML),
        ('reader', 'admin', keys.sign('admin', text), YAML), ('nothing', 'alpha', keys.sign('alpha', '# nothing\n'), YAML),
        ('not YAML', 'alpha', keys.sign('alpha', 'a: [1'), YAML), ('a list', 'alpha', keys.sign('alpha', '- 1\n'), YAML),
        ('not JSON', 'alpha', keys.sign('alpha', 'a: 1'), JSON), ('twice', 'alpha', keys.sign('alpha', f'{text}\n---\n{text}\n'), YAML),
        *((f'without {".".join(p)}', 'alpha', keys.sign('alpha', without(*p)), YAML)
          for p in (['subject'], ['spec'], ['spec', 'uuid'], ['checked_at'], ['run'], ['run', 'uuid'], ['run', 'invocations'])),
    ]
    for name, account, body, kind in cases: both.ask(f'upload: {name}', 'POST', '/reports', account, body, kind)
    both.ask('upload: good JSON', 'POST', '/reports', 'tester', keys.sign('tester', text), JSON)
    both.ask('upload: the same again', 'POST', '/reports', 'alpha', signed, YAML)


def compare(both, keys, reports, dump):
    for index, document in enumerate(reports):
        subject = document['subject']
        account = 'tester' if subject in ('alpha', 'beta') and index % 3 == 0 else subject
        both.ask(f'report {index}', 'POST', '/reports', account, keys.sign(account, dump(document)), YAML)
    several = [d for d in generated(40, both.cases, both.versions) if d['subject'] == 'alpha']
    both.ask('several documents', 'POST', '/reports', 'alpha', keys.sign('alpha', ''.join(dump(d) for d in several)), YAML)
    shown = both.same('status', '/status')
    if not shown or not any(s['result'] == 1 for v in shown.values() for s in v.values()) or not any(s['result'] == -1 for v in shown.values() for s in v.values()):
        raise Failed('the reports show neither a passed nor a failed version: a comparison of nothing')
    for subject in [*SUBJECTS, 'nobody']:
        for scope in ('', f'&scopeuuid={IAAS}', f'&scopeuuid={KAAS}', '&scopeuuid=none'): both.same(f'status of {subject}{scope}', f'/status?subject={subject}{scope}')
    both.ask('status as HTML', 'GET', '/status', accept='text/html')
    bad_uploads(both, keys, report('alpha', IAAS, datetime.datetime(2026, 1, 2, 3, 4, 5), {'scs-0100-syntax-check': 1}, False))
    run = lambda d: d['run']['uuid']
    for subject in SUBJECTS: both.same(f'reports of {subject}', '/reports?limit=99', subject, run)
    both.same('reports of another', '/reports?subject=beta&limit=99', 'admin', run)
    for who in (None, 'alpha', 'tester'): both.ask(f'reports of another by {who}', 'GET', '/reports?subject=beta', who)
    one = reports[0]
    for who in (None, one['subject'], 'admin', 'tester'):
        for path in (f'/reports/{run(one)}', f'/page/report_full/{run(one)}'): both.ask(f'{path} by {who}', 'GET', path, who)
    both.ask('a report that is not', 'GET', '/reports/none', 'admin')
    key = lambda r: (r['checked_at'], r['reportuuid'], r['version'], r['check'])
    # Upstream lists what is of the same moment in any order: compared is what both list whole.
    both.same('results not approved', '/results?limit=100&approved=0', 'admin', key)
    for who in (None, 'alpha', 'admin'): both.ask(f'results by {who}', 'GET', '/results?limit=5', who)
    record, = json.loads(call(both.upstream, 'GET', '/results?limit=1&approved=0', 'admin')[2])
    record = {k: record[k] for k in ('reportuuid', 'scopeuuid', 'version', 'check')} | {'approval': True}
    for who in (None, 'alpha', 'admin'): both.ask(f'approval by {who}', 'POST', '/results', who, json.dumps([record]), 'application/json')
    both.same('results after it', '/results?limit=100&approved=0', 'admin', key)
    both.ask('approval of nothing', 'POST', '/results', 'admin', json.dumps({**record, 'check': 'none'}), 'application/json')
    both.same('status after all', '/status')
    for view in ('page', 'fragment', 'markdown', 'book'):
        paths = ['table', 'table_full', 'detail/alpha/scs-compatible-iaas', f'detail_full/alpha/{IAAS}', 'detail/group-delta/scs-compatible-kaas',
                 f'report/{run(one)}', 'scope/scs-compatible-iaas', f'scope/{KAAS}', 'scope/none', 'report/none']
        for path in paths:
            theirs, ours = both.ask(f'/{view}/{path}', 'GET', f'/{view}/{path}', accept='text/html')
            if theirs[0] == 200 and theirs[1] != ours[1]: both.differ(f'/{view}/{path}: {theirs[1]}, ours {ours[1]}')
    both.ask('health', 'GET', '/healthz')
    both.ask('no such path', 'GET', '/nowhere')
    both.ask('no such method', 'DELETE', '/reports', 'admin')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('allod'); p.add_argument('--standards'); p.add_argument('--monitor-python'); p.add_argument('--database')
    p.add_argument('--reports', type=int, default=150); p.add_argument('--seed', type=int, default=1)
    a = p.parse_args()
    random.seed(a.seed)
    work, begin, ok, monitor, registry = tempfile.mkdtemp(prefix='allod-registry-'), time.time(), False, None, None
    try:
        root = checkout(a, work)
        python, keys = a.monitor_python or interpreter(root, work), Keys(work)
        text = bootstrap(python, keys)
        with open(f'{work}/accounts.yaml', 'w') as f: f.write(text)
        monitor = Monitor(root, python, work, text)
        state = f'{work}/registry'
        command = [os.path.abspath(a.allod), 'registry', 'serve', '--state', state, '--bootstrap', f'{work}/accounts.yaml', '--listen', '127.0.0.1:0', '--plain-http']
        log = open(f'{work}/registry.log', 'w')
        registry = subprocess.Popen(command + (['--database', a.database] if a.database else []), stdout=log, stderr=log)
        ours = until('the registry', lambda: os.path.exists(f'{state}/listening') and open(f'{state}/listening').read(), 60)
        both = Both(monitor.url, ours)
        # Which cases there are, and which v5.1 and v1 ask for: upstream's own files, by upstream's own library.
        code = f'''
import sys, json, ruamel.yaml
sys.path.insert(0, {root!r} + '/Tests')
from scs_cert_lib import load_spec
out = []
for name in ('iaas', 'kaas'):
    spec = load_spec(ruamel.yaml.YAML(typ='safe').load(open({root!r} + f'/Tests/scs-compatible-{{name}}.yaml')))
    out.append([list(spec['testcases']), spec['versions']['v5.1' if name == 'iaas' else 'v1']['targets']['main']])
print(json.dumps(out))
'''
        iaas, kaas = json.loads(subprocess.run([python, '-c', code], check=True, capture_output=True, text=True).stdout)
        both.cases, both.versions = {IAAS: iaas[0], KAAS: kaas[0]}, {IAAS: iaas[1], KAAS: kaas[1]}
        def dump(document):
            # Block style outside, for a moment to be plain; JSON, which is YAML, inside.
            return '---\n' + ''.join(f'{k}: {v if k == "checked_at" else json.dumps(v)}\n' for k, v in document.items())
        reports = generated(a.reports, both.cases, both.versions)
        compare(both, keys, reports, dump)
        print(f'{len(reports)} reports of {len(SUBJECTS)} subjects: {both.compared} answers compared, {len(both.wrong)} differ')
        ok = not both.wrong
    except (Failed, subprocess.CalledProcessError) as e: print(f'registry: {e}')
    finally:
        if not ok and os.path.exists(f'{work}/registry.log'): print(open(f'{work}/registry.log').read()[-1500:])
        if registry: registry.terminate(); registry.wait(20)
        if monitor:
            if not ok: print(monitor.told())
            monitor.stop()
        shutil.rmtree(work, ignore_errors=True)
    print(f'registry: {"ok" if ok else "FAILED"} in {time.time() - begin:.0f} s')
    sys.exit(0 if ok else 1)


if __name__ == '__main__': main()
