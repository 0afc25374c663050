#!/usr/bin/env python3
"""Runs the unmodified tests of `tempest.api.identity` (v3, administrators' included) against a cloud.

    identity.py ALLOD [--keep] [--update] [--only REGEX] [--jobs N]      starts a cloud of its own on simulated hosts
    identity.py --clouds CLOUDS_YAML …                                   takes a cloud that runs

Tempest and its configuration go into `.venv` and a temporary directory; the configuration is made from clouds.yaml. Each
test named in `tempest-identity.txt` must pass; one that passes and is not named is told, and added with `--update`: the
list only grows. Exit code 0 only if nothing failed and nothing is missing.
"""
import argparse, os, re, shutil, subprocess, sys, tempfile, time

from common import Failed, open_

HERE = os.path.dirname(os.path.abspath(__file__))
LIST = os.path.join(HERE, 'tempest-identity.txt')
VENV = os.path.join(os.path.dirname(HERE), '.venv')
CONFIG = '''bcrypt_rounds = 4
[identity.security_compliance]
lockout_failure_attempts = 2
lockout_duration = 5
unique_last_password_count = 2
'''


def installed(venv):
    if not os.path.exists(os.path.join(venv, 'bin/tempest')):
        if not os.path.exists(os.path.join(venv, 'bin/python')): subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
        subprocess.run([os.path.join(venv, 'bin/pip'), 'install', '-q', '--disable-pip-version-check', 'tempest'], check=True)
    return os.path.join(venv, 'bin')


def administrator(binaries, clouds):
    """The administrator's entry of clouds.yaml."""
    code = 'import json,sys,yaml;print(json.dumps(yaml.safe_load(open(sys.argv[1]))))'
    import json
    out = subprocess.run([os.path.join(binaries, 'python'), '-c', code, clouds], capture_output=True, text=True, check=True)
    known = json.loads(out.stdout)['clouds']
    return known.get('allod-admin') or known['admin']


def tempest_conf(cloud, work):
    auth = cloud['auth']
    lines = f'''[DEFAULT]
log_file = {work}/tempest.log
[auth]
use_dynamic_credentials = true
create_isolated_networks = false
admin_username = {auth['username']}
admin_password = {auth['password']}
admin_project_name = {auth['project_name']}
admin_domain_name = {auth.get('user_domain_name', 'Default')}
tempest_roles =
[identity]
uri_v3 = {auth['auth_url']}
auth_version = v3
v3_endpoint_type = public
region = {cloud.get('region_name', 'RegionOne')}
ca_certificates_file = {cloud.get('cacert', '')}
user_lockout_failure_attempts = 2
user_lockout_duration = 5
user_unique_last_password_count = 2
[identity-feature-enabled]
api_v2 = false
api_v2_admin = false
trust = true
security_compliance = true
access_rules = true
domain_specific_drivers = false
[oslo_concurrency]
lock_path = {work}/lock
[service_available]
cinder = false
glance = false
neutron = false
nova = false
swift = false
'''
    path = os.path.join(work, 'tempest.conf')
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), 'w') as f: f.write(lines)
    return path


def run(binaries, conf, work, only, jobs):
    """Names of tests by outcome."""
    env = {**os.environ, 'TEMPEST_CONFIG_DIR': work, 'TEMPEST_CONFIG': 'tempest.conf', 'PYTHONWARNINGS': 'ignore',
           'PATH': binaries + ':' + os.environ['PATH']}
    place = os.path.join(work, 'workspace')
    subprocess.run([f'{binaries}/tempest', 'init', '--workspace-path', f'{work}/workspaces.yaml', place], env=env, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shutil.copy(conf, os.path.join(place, 'etc/tempest.conf'))
    env['TEMPEST_CONFIG_DIR'] = os.path.join(place, 'etc')
    command = [f'{binaries}/stestr', 'run', '--concurrency', str(jobs), only]
    with open(f'{work}/output', 'w') as out: subprocess.run(command, cwd=place, env=env, stdout=out, stderr=out)
    outcome = {'passed': {}, 'failed': {}, 'skipped': {}}
    said = open_(f'{work}/output')
    for name, how, why in re.findall(r'^\{\d+\} (\S+) .*?\.\.\. (ok|FAILED|SKIPPED)(?:: (.*))?$', said, re.M):
        name = re.sub(r'\[.*\]', '', name)
        outcome[{'ok': 'passed', 'FAILED': 'failed', 'SKIPPED': 'skipped'}[how]][name] = why
    for name in outcome['failed']:
        found = re.search(r'^\{\d+\} ' + re.escape(name) + r'.*?\.\.\. FAILED\n(.*?)(?=^\{\d+\} |\Z)', said, re.M | re.S)
        text = found.group(1).split('Captured pythonlogging')[0] if found else ''
        outcome['failed'][name] = text.strip()
    if not any(outcome.values()): raise Failed('no test ran: ' + said[-1500:])
    return outcome


def judge(outcome, update, whole):
    known = [line for line in open_(LIST).split() if not line.startswith('#')]
    for name, why in sorted(outcome['skipped'].items()): print(f'skipped {name}: {why}')
    for name, why in sorted(outcome['failed'].items()): print(f'FAILED  {name}\n' + '\n'.join('        ' + l for l in why.strip().splitlines()[-12:]))
    missing = [n for n in known if n not in outcome['passed']] if whole else []
    fresh = sorted(n for n in outcome['passed'] if n not in known)
    for name in missing: print(f'MISSING {name}: it passed once')
    if fresh and update:
        with open(LIST, 'w') as f: f.write('\n'.join(sorted({*known, *fresh})) + '\n')
    elif fresh: print(f'{len(fresh)} passed that are not in the list (add them with --update)')
    print(f'tempest.api.identity: {len(outcome["passed"])} passed, {len(outcome["failed"])} failed, {len(outcome["skipped"])} skipped')
    return not outcome['failed'] and not missing and outcome['passed']


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('allod', nargs='?'); p.add_argument('--clouds'); p.add_argument('--keep', action='store_true')
    p.add_argument('--update', action='store_true'); p.add_argument('--only', default=r'^tempest\.api\.identity\.')
    p.add_argument('--jobs', type=int, default=2); p.add_argument('--venv', default=VENV)
    a = p.parse_args()
    if not a.allod and not a.clouds: p.error('name the binary or --clouds')
    whole = a.only == p.get_default('only')
    work, begin = tempfile.mkdtemp(prefix='allod-identity-'), time.time()
    binaries, state, ok = installed(os.path.abspath(a.venv)), os.path.join(work, 'state'), False
    try:
        clouds = a.clouds
        if not clouds:
            with open(f'{work}/allod.toml', 'w') as f: f.write(CONFIG)
            subprocess.run([a.allod, 'up', '--state', state, '--config', f'{work}/allod.toml', '--listen', '127.0.0.1:0', '--sim-hosts', '2', '--detach'],
                           check=True, stdout=subprocess.DEVNULL)
            clouds = os.path.join(state, 'clouds.yaml')
        cloud = administrator(binaries, clouds)
        ok = judge(run(binaries, tempest_conf(cloud, work), work, a.only, a.jobs), a.update, whole)
        print(f'{time.time() - begin:.0f} s')
    except (Failed, subprocess.CalledProcessError, KeyError) as e: print(f'FAILED: {e}')
    finally:
        if not a.clouds: subprocess.run([a.allod, 'down', '--state', state, '--purge'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if a.keep: print(work)
        else: shutil.rmtree(work, ignore_errors=True)
    return 0 if ok else 1


if __name__ == '__main__': sys.exit(main())
