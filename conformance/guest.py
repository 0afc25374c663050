#!/usr/bin/env python3
"""scs-0101 with a guest: `guest.py ALLOD IMAGE [--server ALLOD] [--state DIR] [--upstream]`.

IMAGE is what `allod image build debian` makes. It is uploaded as a public image with the properties of scs-0102, and `allod certify`
judges the cloud, its guest included. Guests get packages from mirror.py, through their router, on the gateway of the external network.

--server     binary of the cloud, if ALLOD is the small one
--state      judge the cloud that runs there, e.g. that of `make up`, as its tenant `allod`; image and cloud are left. Otherwise a cloud
             of its own in a network namespace, of which nothing is left
--upstream   run upstream's unmodified scripts, too, with the address of the same mirror, and compare every verdict;
             --standards and --python as for certify.py

Exit code 0 if scs-0101 and scs-0102 pass, nothing is left of what was made, and no verdict differs. Needs root.
"""
import argparse, datetime, json, os, platform, shutil, socket, subprocess, sys, tempfile, threading, time

from certify import GUEST, Table, Upstream, checkout, interpreter
from common import Failed, sh
from mirror import Mirror
from probe import Cloud

# Not "Debian 12": by scs-0104 what is called so comes from Debian as a whole image.
NAME = 'allod-debian-12'


class Running(Cloud):
    """A cloud that somebody else started, and will end."""
    def __init__(self, a, work):
        self.allod, self.state, self.work, self.begin = os.path.abspath(a.allod), os.path.abspath(a.state), work, time.time()
        self.connect()

    def down(self): pass


def properties(image):
    """What scs-0102 asks for, as it is: built here, on the day that the file says, and never replaced."""
    built = datetime.datetime.fromtimestamp(os.stat(image).st_mtime, datetime.timezone.utc)
    return {'architecture': platform.machine(), 'os_distro': 'debian', 'os_version': '12', 'os_type': 'linux', 'os_purpose': 'minimal',
            'hypervisor_type': 'qemu', 'hw_disk_bus': 'virtio', 'hw_rng_model': 'virtio', 'image_build_date': built.strftime('%Y-%m-%d %H:%M:%S'),
            'image_original_user': 'debian', 'image_source': 'private', 'image_description': 'Debian with cloud-init, by allod image build debian',
            'replace_frequency': 'never', 'provided_until': 'none', 'uuid_validity': 'none', 'hotfix_hours': '0'}


def upload(c, path):
    if c.admin.image.find_image(NAME): return c.say(f'the image {NAME} is there')
    size = json.loads(sh('qemu-img', 'info', '--output=json', path))['virtual-size']
    c.admin.image.create_image(name=NAME, filename=path, disk_format='qcow2', container_format='bare', visibility='public', min_ram=512,
                               min_disk=-(-size // 2**30), wait=True, validate_checksum=False, **properties(path))
    c.say(f'image {NAME}, {os.stat(path).st_size / 1e6:.0f} MB')


def certify(c, mirror, *more):
    command = [c.allod, 'certify', '--cloud', 'allod', '--recommended', '--json', '--journals', f'{c.work}/journals', '--guest-mirror', mirror, *more]
    begin = time.time()
    p = subprocess.run(command, capture_output=True, text=True, env=c.env, timeout=1800)
    if p.returncode not in (0, 1): raise Failed(f'{" ".join(command)}: {p.stderr[-800:]}')
    report = json.loads(p.stdout)
    count = {v: sum(r['verdict'] == v for r in report['results']) for v in ('PASS', 'FAIL', 'ABORT')}
    c.say(f'{len(report["results"])} cases in {time.time() - begin:.0f} s: ' + ', '.join(f'{n} {v}' for v, n in count.items()))
    for r in report['results']:
        if r['verdict'] != 'PASS' or r['id'] in GUEST:
            print(f'    {r["verdict"]:<5} {r["id"]}: ' + '; '.join(n['text'] for n in r['notes']), flush=True)
    return report


def judge(a, c, mirror, upstream):
    c.say('cloud is up')
    upload(c, os.path.abspath(a.image))
    before = c.has()
    report = certify(c, mirror)
    c.same(before, 'nothing is left by allod certify')
    wrong = [r['id'] for r in report['results'] if r['verdict'] != 'PASS' and (r['id'] in GUEST or r['id'].startswith('scs-0102'))]
    if wrong: raise Failed(f'{", ".join(wrong)}: not passed')
    if not upstream: return
    table, begin = Table(), time.time()
    theirs = Upstream(*upstream, c.env['OS_CLIENT_CONFIG_FILE'], False, mirror)
    table.add('allod', theirs('allod', [r['id'] for r in report['results']]), report)
    theirs.end()
    c.say(f'upstream: {time.time() - begin:.0f} s')
    c.same(before, 'nothing is left by upstream')
    print(table.text())
    if table.rows: raise Failed('verdicts differ')


def door(c):
    """A socket on the host's own address in the external network, and the URL of a mirror that serves there."""
    net = c.admin.network.find_network('public')
    gateway = next(c.admin.network.subnets(network_id=net.id)).gateway_ip
    s = socket.create_server((gateway, 0))
    return s, f'http://{gateway}:{s.getsockname()[1]}/debian/'


def inside(a):
    """In the namespace of the cloud; the mirror, which asks the world, is outside."""
    sh('ip', 'link', 'set', 'lo', 'up')
    with open(f'{a.inside}/allod.toml', 'w') as f: f.write('bcrypt_rounds = 4\n')
    c = Cloud(a, a.inside, '--config', f'{a.inside}/allod.toml')
    try:
        listening, url = door(c)
        with socket.socket(fileno=a.door) as outside: socket.send_fds(outside, [b'.'], [listening.fileno()])
        judge(a, c, url, (a.python, a.standards) if a.upstream else None)
    except BaseException:
        for log in sorted(os.listdir(c.state + '/log')): print(f'--- {log}'); print(''.join(open(f'{c.state}/log/{log}', errors='replace').readlines()[-25:]))
        raise
    finally: c.down()


def serve(mirror):
    threading.Thread(target=mirror.serve_forever, daemon=True).start()


def told(mirror):
    print(f'mirror: {len(mirror.asked)} files asked for, {sum(not ok for _, ok in mirror.asked)} not there', flush=True)


def own(a, work):
    """A cloud in a namespace of its own."""
    ns, (here, there), mirror = f'allod-guest-{os.getpid()}', socket.socketpair(), None
    sh('ip', 'netns', 'add', ns)
    try:
        more = ['--standards', a.standards, '--python', a.python] if a.upstream else []
        p = subprocess.Popen(['ip', 'netns', 'exec', ns, sys.executable, __file__, *sys.argv[1:], *more, '--inside', work, '--door', str(there.fileno())],
                             pass_fds=[there.fileno()])
        there.close()
        try:
            _, found, *_ = socket.recv_fds(here, 1, 1)
            if found:
                mirror = Mirror(socket.socket(fileno=found[0])); serve(mirror)
            if p.wait(): raise Failed('in its namespace')
        finally:
            p.terminate(); p.wait()
            if mirror: told(mirror); mirror.end()
    finally: sh('ip', 'netns', 'del', ns, ok=False)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('allod'); ap.add_argument('image'); ap.add_argument('--server', default=''); ap.add_argument('--state', default='')
    ap.add_argument('--upstream', action='store_true'); ap.add_argument('--standards', default=''); ap.add_argument('--python', default='')
    ap.add_argument('--agent', default='', help=argparse.SUPPRESS)
    ap.add_argument('--inside', default='', help=argparse.SUPPRESS); ap.add_argument('--door', type=int, default=-1, help=argparse.SUPPRESS)
    a = ap.parse_args()
    work = a.inside or tempfile.mkdtemp(prefix='allod-guest-'); os.chmod(work, 0o711)
    try:
        if a.inside: inside(a); return 0
        if a.upstream:
            a.standards = os.path.join(checkout(a, work), 'Tests')
            a.python = interpreter(a.python, a.standards, work, 'requirements.txt', 'iaas/requirements.txt')
        if not a.state: own(a, work)
        else:
            c = Running(a, work)
            listening, url = door(c)
            mirror = Mirror(listening); serve(mirror)
            try: judge(a, c, url, (a.python, a.standards) if a.upstream else None)
            finally: told(mirror); mirror.end()
        print('passed'); return 0
    except Failed as e:
        print(f'FAILED: {e}', flush=True); return 1
    finally:
        if not a.inside: shutil.rmtree(work, ignore_errors=True)


if __name__ == '__main__': sys.exit(main())
