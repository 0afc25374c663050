#!/usr/bin/env python3
"""The main job on real parts, and what must survive: `real.py ALLOD IMAGE [--debian IMAGE] [--keep] [--only WORD]`.

Runs a whole cloud in a network namespace of its own (QEMU guests, OVN, volumes), talks to it with openstacksdk, and to
guests by SSH through floating IPs. Needs root. Leaves nothing behind, and checks that.
"""
import argparse, json, os, re, shutil, signal, subprocess, sys, tempfile, time

os.environ.pop('PYTHONDONTWRITEBYTECODE', None)

from common import Failed, open_, sh, until


class World:
    def __init__(self, allod, image, state):
        self.allod, self.image, self.state = allod, image, state
        self.begin = time.time()
        self.key = os.path.join(state + '-key'); sh('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', self.key)

    def say(self, text): print(f'{time.time() - self.begin:7.1f} s  {text}', flush=True)

    def up(self):
        sh(self.allod, 'up', '--state', self.state, '--listen', '127.0.0.1:0', '--detach', *(['--config', os.environ['ALLOD_CONFIG']] if 'ALLOD_CONFIG' in os.environ else []), timeout=200)
        os.environ['OS_CLIENT_CONFIG_FILE'] = os.path.join(self.state, 'clouds.yaml')
        import openstack
        self.demo, self.alt, self.admin = (openstack.connect(cloud=c) for c in ('allod', 'allod-alt', 'allod-admin'))

    def ssh(self, ip, command, ok=True, timeout=30, user='root'):
        return sh('ssh', '-i', self.key, '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'ConnectTimeout=3',
                  '-o', 'LogLevel=ERROR', '-o', 'BatchMode=yes', f'{user}@{ip}', command, ok=ok, timeout=timeout)

    def ping(self, ip): return subprocess.run(['ping', '-c1', '-W1', ip], capture_output=True).returncode == 0

    def pid(self, role): return int(open(f'{self.state}/run/{role}.pid').read().split()[0])

    def guest_pid(self, server): return json.load(open(f'{self.state}/guests/{server}/state.json'))['process']['pid']

    def daemons(self):
        """Pids of the OVN and Open vSwitch daemons of this cloud: children of nobody, with our directory in their command line."""
        found = {}
        for p in filter(str.isdigit, os.listdir('/proc')):
            try: line = open(f'/proc/{p}/cmdline').read().replace('\0', ' ')
            except OSError: continue
            m = re.match(r'\S*(ovsdb-server|ovn-northd|ovs-vswitchd|ovn-controller)\b', line)
            if m and os.readlink(f'/proc/{p}/ns/net') == os.readlink('/proc/self/ns/net'): found.setdefault(m[1], int(p))
        return found

    def network(self, conn, name, cidr):
        net = conn.network.create_network(name=name)
        sub = conn.network.create_subnet(network_id=net.id, ip_version=4, cidr=cidr, name=name)
        router = conn.network.create_router(name=name, external_gateway_info={'network_id': conn.network.find_network('public').id})
        conn.network.add_interface_to_router(router, subnet_id=sub.id)
        return net

    def server(self, conn, name, net, image='mini', flavor='SCS-1V-4', **kw):
        flavor = conn.compute.find_flavor(flavor).id
        image = conn.image.find_image(image).id
        import base64
        data = base64.b64encode(f'#!/bin/sh\necho "user data of {name}" > /root/ran\n'.encode()).decode()
        s = conn.compute.create_server(name=name, flavor_id=flavor, image_id=image, networks=[{'uuid': net.id}], key_name='k', user_data=data,
                                       metadata={'role': name}, **kw)
        return conn.compute.wait_for_server(s, interval=.3, wait=120)

    def floating(self, conn, server):
        port = next(conn.network.ports(device_id=server.id))
        return conn.network.create_ip(floating_network_id=conn.network.find_network('public').id, port_id=port.id)


def main_job(w):
    w.up(); w.say('cloud is up')
    w.admin.image.create_image(name='mini', filename=w.image, disk_format='qcow2', container_format='bare', visibility='public', wait=True, validate_checksum=False)
    for conn in (w.demo, w.alt): conn.compute.create_keypair(name='k', public_key=open(w.key + '.pub').read())
    w.net = w.network(w.demo, 'web', '10.20.0.0/24')
    w.group = w.demo.network.create_security_group(name='ssh')
    for proto, low in (('tcp', 22), ('icmp', None)):
        w.demo.network.create_security_group_rule(security_group_id=w.group.id, direction='ingress', ether_type='IPv4', protocol=proto,
                                                  port_range_min=low, port_range_max=low)
    w.volume = w.demo.block_storage.create_volume(name='data', size=1)
    w.web = w.server(w.demo, 'web', w.net, security_groups=[{'name': 'ssh'}])
    w.say('server is ACTIVE')
    w.fip = w.floating(w.demo, w.web).floating_ip_address
    until('SSH', lambda: w.ssh(w.fip, 'true') == '', 90)
    w.say(f'SSH answers on {w.fip}: {w.ssh(w.fip, "uname -r").strip()}')
    until('user data', lambda: 'user data of web' in w.ssh(w.fip, 'cat /root/ran'), 30)
    meta = json.loads(w.ssh(w.fip, 'wget -qO- http://169.254.169.254/openstack/latest/meta_data.json'))
    shown = w.demo.compute.get_server(w.web.id)
    for got, want in ((meta['uuid'], shown.id), (meta['name'], shown.name), (meta['meta'], shown.metadata), (meta['project_id'], shown.project_id)):
        if got != want: raise Failed(f'metadata {got!r} is not {want!r}')
    if 'k' not in meta['public_keys']: raise Failed('the key is not in the metadata')
    w.say('user data ran, metadata equals what the API says')
    w.demo.block_storage.wait_for_status(w.volume, 'available', interval=.3, wait=60)
    w.demo.compute.create_volume_attachment(w.web, volume_id=w.volume.id)
    w.demo.block_storage.wait_for_status(w.volume, 'in-use', interval=.3, wait=60)
    disk = until('the volume', lambda: w.ssh(w.fip, f'grep -ls {w.volume.id[:20]} /sys/block/*/serial'), 30).split('/')[3]
    w.ssh(w.fip, f'echo written-by-web | dd of=/dev/{disk} bs=512 conv=sync 2>/dev/null; sync')
    w.say(f'volume is /dev/{disk} by its serial')


def tenants(w):
    import openstack.exceptions as E
    for ask in (lambda: w.alt.compute.get_server(w.web.id), lambda: w.alt.network.get_network(w.net.id), lambda: w.alt.block_storage.get_volume(w.volume.id),
                lambda: w.alt.network.get_security_group(w.group.id)):
        try: ask()
        except E.NotFoundException: continue
        raise Failed('the second tenant sees what is not its own')
    if [s for s in w.alt.compute.servers()]: raise Failed('the second tenant lists servers')
    net = w.network(w.alt, 'other', '10.20.0.0/24')  # overlapping on purpose
    w.other = w.server(w.alt, 'other', net)
    w.ofip = w.floating(w.alt, w.other).floating_ip_address
    log = until('the second guest boots', lambda: 'ready' in w.alt.compute.get_server_console_output(w.other)['output'], 90)
    w.say('second tenant has a guest in an overlapping network')
    for _ in range(3):
        if w.ping(w.ofip): raise Failed('the default security group lets ping in')
    default = next(w.alt.network.security_groups(name='default', project_id=w.alt.current_project_id))
    rules = [w.alt.network.create_security_group_rule(security_group_id=default.id, direction='ingress', ether_type='IPv4', protocol=p,
             port_range_min=q, port_range_max=q) for p, q in (('icmp', None), ('tcp', 22))]
    until('ping after a rule allows it', lambda: w.ping(w.ofip), 20)
    until('SSH after a rule allows it', lambda: w.ssh(w.ofip, 'true') == '', 30)
    fixed = next(w.demo.network.ports(device_id=w.web.id)).fixed_ips[0]['ip_address']
    seen = w.ssh(w.ofip, f'ping -c2 -W1 {fixed} >/dev/null && timeout 3 wget -qO- http://169.254.169.254/openstack/latest/meta_data.json', ok=False)
    if w.web.id in seen: raise Failed('the second tenant reads the first tenant\'s metadata')
    mac = w.ssh(w.ofip, f'ping -c1 -W1 {fixed} >/dev/null; cat /proc/net/arp')
    demo_mac = next(w.demo.network.ports(device_id=w.web.id)).mac_address
    if demo_mac in mac: raise Failed('the second tenant reaches the first tenant\'s port')
    session = subprocess.Popen(['ssh', '-i', w.key, '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR',
                                f'root@{w.ofip}', 'while :; do echo tick; sleep 0.2; done'], stdout=subprocess.PIPE)
    os.set_blocking(session.stdout.fileno(), False)
    until('the session talks', lambda: session.stdout.read(), 20)
    for r in rules: w.alt.network.delete_security_group_rule(r.id)
    def silent():
        session.stdout.read(); time.sleep(2)
        return not session.stdout.read()
    until('the established connection is cut', silent, 20)
    session.kill(); session.wait()
    w.say('default group blocks, a rule opens, its removal cuts what was established')
    w.alt.compute.delete_server(w.other.id); w.alt.compute.wait_for_delete(w.other, interval=.3, wait=60)


def volumes(w):
    snap = w.demo.block_storage.create_snapshot(volume_id=w.volume.id, name='s', force=True)
    w.demo.block_storage.wait_for_status(snap, 'available', interval=.3, wait=60)
    w.demo.compute.delete_volume_attachment(w.web, w.volume.id)
    w.demo.block_storage.wait_for_status(w.volume, 'available', interval=.3, wait=60)
    until('the disk leaves the guest', lambda: not w.ssh(w.fip, f'grep -ls {w.volume.id[:20]} /sys/block/*/serial', ok=False).strip(), 30)
    copy = w.demo.block_storage.create_volume(size=1, snapshot_id=snap.id, name='copy')
    w.demo.block_storage.wait_for_status(copy, 'available', interval=.3, wait=60)
    w.demo.compute.create_volume_attachment(w.web, volume_id=copy.id)
    disk = until('the copy', lambda: w.ssh(w.fip, f'grep -ls {copy.id[:20]} /sys/block/*/serial'), 30).split('/')[3]
    if 'written-by-web' not in w.ssh(w.fip, f'dd if=/dev/{disk} bs=512 count=1 2>/dev/null'): raise Failed('the snapshot lost what was written')
    w.say('snapshot of a volume in use, volume from it, content compared')


def power(w):
    c = w.demo.compute
    for verb, status in ((c.pause_server, 'PAUSED'), (c.unpause_server, 'ACTIVE'), (c.suspend_server, 'SUSPENDED'), (c.resume_server, 'ACTIVE')):
        verb(w.web); c.wait_for_server(c.get_server(w.web.id), status=status, interval=.3, wait=90)
    until('SSH after resume', lambda: w.ssh(w.fip, 'true') == '', 30)
    before = w.ssh(w.fip, 'cat /proc/sys/kernel/random/boot_id')
    c.reboot_server(w.web, 'SOFT'); until('another boot', lambda: w.ssh(w.fip, 'cat /proc/sys/kernel/random/boot_id') not in ('', before), 120)
    w.say('pause, suspend, resume, soft reboot')


def debian(w):
    """A distribution's own guest: systemd, cloud-init, a filesystem that grows with its disk."""
    if not w.debian: return w.say('no --debian IMAGE: left out')
    w.admin.image.create_image(name='debian', filename=w.debian, disk_format='qcow2', container_format='bare', visibility='public', wait=True, validate_checksum=False)
    server = w.server(w.demo, 'deb', w.net, image='debian', flavor='SCS-2V-4-10', security_groups=[{'name': 'ssh'}])
    ip = w.floating(w.demo, server).floating_ip_address
    ssh = lambda command: w.ssh(ip, command, user='debian')
    release = until('SSH', lambda: ssh('. /etc/os-release; echo $PRETTY_NAME; uname -r').split('\n'), 400, every=2)
    w.say(f'{release[0]} with kernel {release[1]} answers SSH on {ip}')
    until('cloud-init', lambda: 'running' not in ssh('cloud-init status || true'), 200, every=2)
    status = ssh('cloud-init status --long || true')
    if 'status: done' not in status: raise Failed(f'cloud-init: {status}')
    if 'user data of deb' not in ssh('sudo cat /root/ran'): raise Failed('user data did not run')
    if ssh('hostname').strip() != 'deb': raise Failed('the hostname is not the server\'s name')
    gib = int(ssh('df --output=size -BG / | tail -1').strip(' G\n'))
    if gib < 9: raise Failed(f'the root filesystem has {gib} GiB of a disk of 10')
    meta = json.loads(ssh('curl -sf http://169.254.169.254/openstack/latest/meta_data.json'))
    if meta['uuid'] != server.id: raise Failed('metadata of another server')
    w.say(f'cloud-init is done, user data ran, the root filesystem has {gib} GiB')
    w.demo.compute.delete_server(server); w.demo.compute.wait_for_delete(server, wait=60)


def survives(w):
    """kill -9 of each part in turn, then of all at once."""
    c = w.demo.compute
    boot = w.ssh(w.fip, 'cat /proc/sys/kernel/random/boot_id')
    def still_there():
        until('API', lambda: c.get_server(w.web.id).status == 'ACTIVE', 40)
        until('the same boot answers', lambda: w.ssh(w.fip, 'cat /proc/sys/kernel/random/boot_id') == boot, 60)
    def converges(tag):
        net = until('a network', lambda: w.demo.network.create_network(name=tag), 30)
        w.demo.network.create_subnet(network_id=net.id, ip_version=4, cidr='10.99.0.0/24')
        port = w.demo.network.create_port(network_id=net.id)
        w.demo.network.delete_port(port.id); w.demo.network.delete_network(net.id)
    for role in ('server', 'agent'):
        pid = w.pid(role); os.kill(pid, signal.SIGKILL)
        until(f'{role} is back', lambda: w.pid(role) != pid, 30); still_there(); converges(role)
        w.say(f'kill -9 of {role}: survived')
    for name, pid in sorted(w.daemons().items()):
        os.kill(pid, signal.SIGKILL)
        until(f'{name} is back', lambda: w.daemons().get(name) not in (None, pid), 30); still_there(); converges(name)
        w.say(f'kill -9 of {name}: survived')
    os.kill(w.guest_pid(w.web.id), signal.SIGKILL)
    until('the killed guest is reported', lambda: c.get_server(w.web.id).status in ('SHUTOFF', 'ERROR'), 40)
    c.start_server(w.web) if c.get_server(w.web.id).status == 'SHUTOFF' else c.reboot_server(w.web, 'HARD')
    until('it starts again', lambda: c.get_server(w.web.id).status == 'ACTIVE', 60)
    boot = until('SSH', lambda: w.ssh(w.fip, 'cat /proc/sys/kernel/random/boot_id'), 90)
    w.say('kill -9 of a guest: reported, started again')
    second = w.server(w.demo, 'victim', w.net, security_groups=[{'name': 'ssh'}])
    victim = w.floating(w.demo, second).floating_ip_address
    until('the victim answers', lambda: w.ssh(victim, 'true') == '', 90)
    made = [w.demo.network.create_network(name=f'ack-{n}').id for n in range(5)]
    for pid in [w.pid('server'), w.pid('agent'), *w.daemons().values(), w.guest_pid(second.id)]: os.kill(pid, signal.SIGKILL)
    still_there()
    for n in made: w.demo.network.get_network(n); w.demo.network.delete_network(n)
    until('the killed guest is reported', lambda: c.get_server(second.id).status == 'SHUTOFF', 40)
    c.start_server(second)
    until('the killed guest answers again', lambda: w.ssh(victim, 'true') == '', 90)
    converges('all')
    w.say('kill -9 of all at once, a guest among them: acknowledged resources are there, the other guests ran on, the killed one starts again')
    sh(w.allod, 'restart', '--state', w.state, timeout=200); still_there()
    w.say('allod restart: guests ran on')


def purge(w):
    sh(w.allod, 'down', '--state', w.state, '--purge', timeout=120)
    left = w.daemons()
    if left: raise Failed(f'daemons left: {left}')
    if os.path.exists(w.state): raise Failed('the state directory is left')
    links = [l.split(': ')[1] for l in sh('ip', '-o', 'link').splitlines()]
    strange = [l for l in links if l.split('@')[0] not in ('lo', 'tunl0', 'gre0', 'sit0', 'ip6tnl0', 'erspan0', 'gretap0', 'ip_vti0', 'ip6_vti0', 'ip6gre0')]
    if strange: raise Failed(f'links left: {strange}')
    if 'ovnmeta' in sh('ip', 'netns', ok=False): raise Failed('namespaces left')
    qemus = [p for p in filter(str.isdigit, os.listdir('/proc')) if 'qemu-system' in open_(f'/proc/{p}/cmdline') and w.state in open_(f'/proc/{p}/cmdline')]
    if qemus: raise Failed(f'guests left: {qemus}')
    w.say('down --purge left nothing')


STEPS = [main_job, tenants, volumes, power, debian, survives, purge]


def inside(a):
    sh('ip', 'link', 'set', 'lo', 'up')
    os.makedirs(a.work, exist_ok=True); os.chmod(a.work, 0o711)
    w = World(os.path.abspath(a.allod), os.path.abspath(a.image), os.path.join(a.work, 'state'))
    w.debian = os.path.abspath(a.debian) if a.debian else None
    try:
        steps = [s for s in STEPS if not a.only or s in (main_job, purge) or s.__name__ == a.only]
        for step in steps:
            print(f'== {step.__name__}', flush=True); step(w)
        print(f'{len(steps)} passed, 0 failed'); return 0
    except Exception as e:
        print(f'FAILED: {type(e).__name__}: {e}', flush=True)
        for log in sorted(os.listdir(w.state + '/log')) if os.path.isdir(w.state + '/log') else []:
            print(f'--- {log}'); print(''.join(open(f'{w.state}/log/{log}', errors='replace').readlines()[-25:]))
        print('0 passed, 1 failed'); return 1
    finally:
        if not a.keep and os.path.isdir(w.state): subprocess.run([w.allod, 'down', '--state', w.state, '--purge'], capture_output=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('allod'); ap.add_argument('image'); ap.add_argument('--keep', action='store_true')
    ap.add_argument('--only', default=''); ap.add_argument('--debian', default=''); ap.add_argument('--inside', action='store_true'); ap.add_argument('--work', default='')
    a = ap.parse_args()
    if a.inside: return inside(a)
    work = tempfile.mkdtemp(prefix='allod-'); ns = f'allod-{os.getpid()}'
    sh('ip', 'netns', 'add', ns)
    try:
        return subprocess.run(['ip', 'netns', 'exec', ns, sys.executable, __file__, *sys.argv[1:], '--inside', '--work', work]).returncode
    finally:
        if a.keep: print(f'kept: {work}, namespace {ns}')
        else:
            shutil.rmtree(work, ignore_errors=True); sh('ip', 'netns', 'del', ns, ok=False)


if __name__ == '__main__':
    sys.exit(main())
