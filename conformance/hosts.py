#!/usr/bin/env python3
"""Several hosts for real: `hosts.py ALLOD IMAGE [--keep-logs] [--work DIR]`.

Three hosts as namespaces (network, mounts, processes, name) of one machine, each with its own agent, switch and
ovn-controller. h1 runs `allod up`; h2 and h3 join with tokens. A fourth machine without guests has another replica of the
server, on the same PostgreSQL behind one balancer, which takes everything over when that of h1 stands still. Guests on all three reach each other through tunnels whose
packets are counted, one is reached by floating IP through another host; a host is cut off with its agent dead, its guest
stands still, is evacuated when that is proved and not before, and does not run twice when the host comes back. Needs root.
Leaves nothing behind, and checks that.
"""
import argparse, base64, json, os, re, shutil, signal, socket, struct, subprocess, sys, tempfile, threading, time

from common import Failed, Postgres, open_, sh, until

LEASE, MARGIN, DOWN, CERTIFICATE = 9, 3, 14, 45
BALANCER = '10.77.0.254'
CONFIG = f'''listen = "10.77.0.%(number)d:8443"
public_url = "https://{BALANCER}:8443"
names = ["{BALANCER}"]
database = "%(database)s"
bcrypt_rounds = 4
%(more)s
[replica]
shared_dir = "%(shared)s"
lease_secs = 3
ovn_agent = "%(ovn_agent)s"

[hosts]
lease_secs = {LEASE}
lease_margin_secs = {MARGIN}
down_after_secs = {DOWN}
certificate_secs = {CERTIFICATE}
'''


def stat(pid):
    """State letter of a process, '' if it is gone."""
    return open_(f'/proc/{pid}/stat').rpartition(') ')[2][:1]


class Host:
    """Namespaces with an init that reaps; killing the init kills everything inside."""

    def __init__(self, w, number):
        self.w, self.name, self.number = w, f'h{number}', number
        self.state = os.path.join(w.work, self.name)
        self.outer = subprocess.Popen(['unshare', '--net', '--mount', '--uts', '--pid', '--fork', '--kill-child', '--mount-proc',
                                       sys.executable, __file__, '--init', self.name], stdout=subprocess.PIPE)
        self.outer.stdout.readline()
        self.init = int(open(f'/proc/{self.outer.pid}/task/{self.outer.pid}/children').read().split()[0])
        for net, bridge in (('77', 'mgmt'), ('78', 'under')):
            peer = f'{bridge}-{self.name}'
            sh('ip', 'link', 'add', peer, 'type', 'veth', 'peer', 'name', f'{bridge}0', 'netns', str(self.init))
            sh('ip', 'link', 'set', peer, 'master', bridge, 'up')
            self.sh('ethtool', '-K', f'{bridge}0', 'tx', 'off')
            self.sh('ip', 'address', 'add', f'10.{net}.0.{number}/24', 'dev', f'{bridge}0')
            self.sh('ip', 'link', 'set', f'{bridge}0', 'up')
        self.agents = []

    def command(self, *command): return ['nsenter', '-t', str(self.init), '-n', '-m', '-u', '-p', '--', *command]

    def sh(self, *command, **kw): return sh(*self.command(*command), **kw)

    def agent(self, *args):
        log = open(f'{self.w.work}/{self.name}-agent.log', 'a')
        agent = subprocess.Popen(self.command('setsid', self.w.allod, 'agent', '--state', self.state, *args), stdout=log, stderr=log)
        self.agents.append(agent)
        return agent

    def link(self, way):
        for bridge in ('mgmt', 'under'): sh('ip', 'link', 'set', f'{bridge}-{self.name}', way)

    def certificate(self): return sh('openssl', 'x509', '-in', self.state + '/pki/host.crt', '-noout', '-enddate').strip()

    def inside(self):
        """Processes in this host's namespaces, by pid as seen here."""
        ns = os.readlink(f'/proc/{self.init}/ns/pid')
        found = {}
        for p in filter(str.isdigit, os.listdir('/proc')):
            try:
                if os.readlink(f'/proc/{p}/ns/pid') == ns and int(p) != self.init: found[int(p)] = open_(f'/proc/{p}/cmdline').replace('\0', ' ')
            except OSError: pass
        return found

    def guest(self, server):
        """QEMU of a server on this host."""
        return next((p for p, line in self.inside().items() if line.startswith('qemu-system') and f'-uuid {server}' in line), None)


class Balancer:
    """Passes TCP on to the first of its backends, in the namespace outside of the hosts."""
    def __init__(self, backends):
        self.backends, self.open = backends, []
        self.listener = socket.create_server((BALANCER, 8443), backlog=128)
        threading.Thread(target=self.run, daemon=True).start()

    def lead_to(self, *backends):
        """Connections to others end."""
        self.backends = list(backends)
        for client, server, to in self.open:
            if to not in backends:
                for s in (client, server):
                    try: s.shutdown(socket.SHUT_RDWR)
                    except OSError: pass

    def run(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        for to in list(self.backends):
            try: server = socket.create_connection(to, timeout=2)
            except OSError: continue
            server.settimeout(None); self.open.append((client, server, to))
            threading.Thread(target=self.pump, args=(client, server), daemon=True).start()
            self.pump(server, client); return
        client.close()

    def pump(self, source, sink):
        try:
            while data := source.recv(65536): sink.sendall(data)
        except OSError: pass
        for s in (source, sink):
            try: s.shutdown(socket.SHUT_RDWR)
            except OSError: pass


class World:
    def __init__(self, allod, image, work):
        self.allod, self.image, self.work, self.begin = allod, image, work, time.time()
        self.key = os.path.join(work, 'key'); sh('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', self.key)
        for bridge in ('mgmt', 'under'):
            sh('ip', 'link', 'add', bridge, 'type', 'bridge'); sh('ip', 'link', 'set', bridge, 'up')
        sh('ip', 'address', 'add', '10.77.0.254/24', 'dev', 'mgmt')
        sh('ethtool', '-K', 'mgmt', 'tx', 'off')
        self.h1, self.h2, self.h3, self.h4 = self.hosts = [Host(self, n) for n in (1, 2, 3, 4)]
        self.database = Postgres(work + '/pg')
        self.balancer = Balancer([('10.77.0.1', 8443), ('10.77.0.4', 8443)])
        # Floating addresses answer at h1.
        sh('ip', 'route', 'add', '172.24.4.0/24', 'via', '10.77.0.1')
        self.tunnelled = {}
        threading.Thread(target=self.sniff, daemon=True).start()
        self.double, self.seen = [], 0
        threading.Thread(target=self.watch, daemon=True).start()

    def say(self, text): print(f'{time.time() - self.begin:7.1f} s  {text}', flush=True)

    def sniff(self):
        """Counts geneve packets on the underlay by outer source and destination."""
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind(('under', 0))
        # What a bridge forwards passes its ports, not itself: listen on every port's incoming side instead.
        s.close(); s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        while True:
            packet, where = s.recvfrom(2048)
            if not where[0].startswith('under-h') or where[2] == 4: continue
            if packet[12:14] == b'\x08\x00' and packet[23] == 17 and struct.unpack('!H', packet[36:38])[0] == 6081:
                pair = (socket.inet_ntoa(packet[26:30]), socket.inet_ntoa(packet[30:34]))
                self.tunnelled[pair] = self.tunnelled.get(pair, 0) + 1

    def watch(self):
        """Looks for a server whose guest runs (not stopped) in two processes, all the time."""
        while True:
            running = {}
            for p in filter(str.isdigit, os.listdir('/proc')):
                m = re.search(r'^qemu-system.*-uuid ([0-9a-f-]{36})', open_(f'/proc/{p}/cmdline').replace('\0', ' '))
                if m and stat(p) not in ('T', 'Z', 'X', ''): running.setdefault(m[1], []).append(p)
            self.double += [f'{s}: {pids}' for s, pids in running.items() if len(pids) > 1]
            self.seen += 1
            time.sleep(.1)

    def ssh(self, ip, command, ok=True, timeout=30):
        return sh('ssh', '-i', self.key, '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'ConnectTimeout=3',
                  '-o', 'LogLevel=ERROR', '-o', 'BatchMode=yes', f'root@{ip}', command, ok=ok, timeout=timeout)

    def server(self, name, host, net):
        data = base64.b64encode(f'#!/bin/sh\necho "user data of {name}" > /root/ran\n'.encode()).decode()
        c = self.admin.compute
        return c.create_server(name=name, flavor_id=c.find_flavor('SCS-1L-1').id, image_id=self.admin.image.find_image('mini').id, key_name='k', user_data=data,
                               networks=[{'uuid': net.id}], security_groups=[{'name': 'ssh'}], availability_zone=f'nova:{host}')

    def active(self, server): return self.admin.compute.wait_for_server(server, interval=.3, wait=150)

    def floating(self, server):
        port = next(self.admin.network.ports(device_id=server.id))
        return self.admin.network.create_ip(floating_network_id=self.admin.network.find_network('public').id, port_id=port.id).floating_ip_address

    def at(self, server): return self.admin.compute.get_server(server.id).hypervisor_hostname

    def service(self, host): return next(s for s in self.admin.compute.services(binary='nova-compute') if s.host == host)

    def act(self, server, body):
        return self.admin.compute.post(f'/servers/{server.id}/action', json=body, microversion='2.90')

    def force(self, host, down):
        answer = self.admin.compute.put(f'/os-services/{self.service(host).id}', json={'forced_down': down}, microversion='2.53')
        if answer.status_code != 200: raise Failed(f'forced_down: {answer.status_code} {answer.text}')


def join(w):
    def config(host, more, ovn_agent):
        path = f'{w.work}/{host.name}.toml'
        with open(path, 'w') as f: f.write(CONFIG % {'number': host.number, 'database': w.database.url, 'shared': w.work + '/shared', 'more': more, 'ovn_agent': ovn_agent})
        return path
    w.h1.sh(w.allod, 'up', '--state', w.h1.state, '--config', config(w.h1, 'underlay = "under0"\nagent_listen = "10.77.0.1:9105"', ''), '--detach', timeout=200)
    log = open(f'{w.work}/h4-server.log', 'a')
    w.h4.agents.append(subprocess.Popen(w.h4.command('setsid', w.allod, 'server', '--state', w.h4.state, '--config', config(w.h4, '', 'https://10.77.0.1:9105')), stdout=log, stderr=log))
    until('the replica listens', lambda: os.path.exists(w.h4.state + '/run/listening'), 60)
    os.environ['OS_CLIENT_CONFIG_FILE'] = os.path.join(w.h1.state, 'clouds.yaml')
    import openstack
    w.admin = openstack.connect(cloud='allod-admin', compute_default_microversion='2.90')
    w.say('h1 is up, and a replica on h4')
    token = lambda ttl='1h': w.h1.sh(w.allod, 'host', 'token', '--state', w.h1.state, '--ttl', ttl).strip()
    def refused(what, token, *more):
        p = subprocess.run(w.h2.command(w.allod, 'agent', '--state', w.work + '/refused', '--join', token, *more), capture_output=True, text=True, timeout=30)
        shutil.rmtree(w.work + '/refused', ignore_errors=True)
        if p.returncode == 0 or not re.search('refuses|is no join token|does not answer', p.stderr): raise Failed(f'{what}: exit {p.returncode}: {p.stderr[-400:]}')
    short, good = token('1s'), token()
    refused('garbage', 'allod1.garbage')
    parts = json.loads(base64.urlsafe_b64decode(good[7:] + '=='))
    forged = lambda **kw: 'allod1.' + base64.urlsafe_b64encode(json.dumps({**parts, **kw}).encode()).decode().rstrip('=')
    refused('another secret', forged(secret='x' * 40))
    refused('another CA', forged(ca='0' * 64))
    refused('a name that is taken', good, '--name', 'h1')
    time.sleep(1.1); refused('an expired token', short)
    stored = subprocess.run(['grep', '-rc', parts['secret'], w.database.dir + '/data/base', w.database.dir + '/data/pg_wal'], capture_output=True, text=True)
    if stored.returncode == 0: raise Failed(f'the secret is stored: {stored.stdout}')
    w.h2.agent('--join', good, '--underlay', 'under0'); w.h3.agent('--join', token(), '--underlay', 'under0')
    for host in (w.h2, w.h3): until(f'{host.name} joined', lambda: os.path.exists(host.state + '/member.json'), 30)
    w.first = {host: host.certificate() for host in (w.h2, w.h3)}
    # The next ones live longer: a host that is away for longer than its certificate lives cannot come back by itself.
    for state in (w.h1.state, w.h4.state):
        config = json.load(open(state + '/config.json')); config.setdefault('hosts', {})['certificate_secs'] = 3600
        with open(state + '/config.json', 'w') as f: json.dump(config, f)
    refused('a used token', good, '--name', 'h4')
    until('three hosts', lambda: sorted(h.name for h in w.admin.compute.hypervisors() if h.state == 'up') == ['h1', 'h2', 'h3'], 60)
    for host in (w.h2, w.h3):
        daemons = {m[1] for line in host.inside().values() if (m := re.match(r'\S*(ovsdb-server|ovn-northd|ovs-vswitchd|ovn-controller)\b', line))}
        if daemons != {'ovsdb-server', 'ovs-vswitchd', 'ovn-controller'}: raise Failed(f'{host.name} runs {daemons}')
    plain = subprocess.run(w.h2.command('ovn-sbctl', '--timeout=3', '--db=tcp:10.77.0.1:6642', 'show'), capture_output=True)
    if plain.returncode == 0: raise Failed('the Southbound database answers without TLS')
    w.say('h2 and h3 joined; bad, expired, forged and used tokens are refused')


def southbound(w):
    """A joined host's rights in the Southbound database end at its own rows."""
    pki = w.h2.state + '/pki'
    sb = lambda *c: subprocess.run(w.h2.command('ovn-sbctl', '--timeout=5', '--no-leader-only', '--db=ssl:10.77.0.1:6642', f'--private-key={pki}/host.key',
                                   f'--certificate={pki}/host.crt', f'--ca-cert={pki}/ca.crt', *c), capture_output=True, text=True)
    names = until('three chassis', lambda: (n := sb('--bare', '--columns=name', 'list', 'Chassis').stdout.split()) and len(n) == 3 and n, 30)
    if sorted(names) != ['h1', 'h2', 'h3']: raise Failed(f'chassis {names}')
    for what in (('set', 'Chassis', 'h3', 'hostname=evil'), ('destroy', 'Chassis', 'h1'), ('set', 'SB_Global', '.', 'options:x=y')):
        p = sb(*what)
        if p.returncode == 0: raise Failed(f'h2 may {what}')
        if 'permission' not in p.stderr: raise Failed(f'{what}: {p.stderr}')
    w.say('h2 writes only its own rows of the Southbound database')


def guests(w):
    n = w.admin.network
    w.admin.image.create_image(name='mini', filename=w.image, disk_format='qcow2', container_format='bare', wait=True, validate_checksum=False)
    w.admin.compute.create_keypair(name='k', public_key=open(w.key + '.pub').read())
    group = n.create_security_group(name='ssh')
    for proto, low in (('tcp', 22), ('icmp', None)):
        n.create_security_group_rule(security_group_id=group.id, direction='ingress', ether_type='IPv4', protocol=proto, port_range_min=low, port_range_max=low)
    router = n.create_router(name='r', external_gateway_info={'network_id': n.find_network('public').id})
    nets = []
    for name, cidr in (('one', '10.30.0.0/24'), ('two', '10.31.0.0/24')):
        net = n.create_network(name=name); sub = n.create_subnet(network_id=net.id, ip_version=4, cidr=cidr); nets.append(net)
        n.add_interface_to_router(router, subnet_id=sub.id)
    made = [w.server('a', 'h1', nets[0]), w.server('b', 'h2', nets[0]), w.server('c', 'h3', nets[1])]
    w.a, w.b, w.c = (w.active(s) for s in made)
    for server, host in ((w.a, 'h1'), (w.b, 'h2'), (w.c, 'h3')):
        if w.at(server) != host: raise Failed(f'{server.name} is on {w.at(server)}')
    w.say('a guest on each host is ACTIVE')
    w.fips = {s.name: w.floating(s) for s in (w.a, w.b, w.c)}
    w.fixed = {s.name: next(n.ports(device_id=s.id)).fixed_ips[0]['ip_address'] for s in (w.a, w.b, w.c)}
    for s in (w.a, w.b, w.c):
        ip = w.fips[s.name]
        until(f'SSH to {s.name}', lambda: w.ssh(ip, 'true') == '', 120)
        until('user data', lambda: f'user data of {s.name}' in w.ssh(ip, 'cat /root/ran'), 30)
        meta = json.loads(w.ssh(ip, 'wget -qO- http://169.254.169.254/openstack/latest/meta_data.json'))
        if meta['uuid'] != s.id: raise Failed(f'metadata of {s.name}: {meta}')
    w.say('floating IPs across hosts answer through h1; user data and metadata on each host')
    for src, dst, path in (('b', 'a', ('10.78.0.2', '10.78.0.1')), ('b', 'c', ('10.78.0.2', '10.78.0.3')), ('c', 'b', ('10.78.0.3', '10.78.0.2'))):
        before = w.tunnelled.get(path, 0)
        until(f'{src} reaches {dst}', lambda: ' 0% packet loss' in w.ssh(w.fips[src], f'ping -c5 -i 0.2 -W2 {w.fixed[dst]}', ok=False), 30)
        if w.tunnelled.get(path, 0) - before < 5: raise Failed(f'{src} to {dst}: {w.tunnelled.get(path, 0) - before} packets in the tunnel')
    w.say(f'guests of three hosts ping each other, in one network and through a router; tunnel packets {sum(w.tunnelled.values())}')


def certificates(w):
    for host in (w.h2, w.h3): until(f'the certificate of {host.name} is renewed', lambda: host.certificate() != w.first[host], CERTIFICATE)
    for host in (w.h2, w.h3):
        if w.service(host.name).state != 'up': raise Failed(f'{host.name} is down after its certificate was renewed')
    w.say(f'certificates were renewed before their end: {w.first[w.h3]} became {w.h3.certificate()}')


def replica(w):
    """The server beside the databases stands still: the other one does everything, networks included."""
    pki = w.h2.state + '/pki'
    curl = lambda *c: w.h2.sh('curl', '-s', '-o', '/dev/null', '-w', '%{http_code}', '--cacert', pki + '/ca.crt', *c, '-H', 'Connection: Upgrade', '-H', 'Upgrade: ovsdb',
                              'https://10.77.0.1:9105/agent/v1/ovsdb')
    for who in ((), ('--cert', pki + '/host.crt', '--key', pki + '/host.key')):
        if (code := curl(*who)) != '401': raise Failed(f'the OVN databases answer {code} to {who}')
    server = int(open_(w.h1.state + '/run/server.pid').split()[0])
    w.h1.sh('kill', '-STOP', str(server)); w.balancer.lead_to(('10.77.0.4', 8443)); began = time.time()
    n = w.admin.network
    net = until('the other replica answers', lambda: attempt(lambda: n.create_network(name='three')), 30)
    sub = n.create_subnet(network_id=net.id, ip_version=4, cidr='10.32.0.0/24')
    n.add_interface_to_router(n.find_router('r'), subnet_id=sub.id)
    w.say(f'the server of h1 stands still; the replica took a network {time.time() - began:.1f} s later')
    made = w.active(w.server('d', 'h3', net)); fip = w.floating(made)
    until('SSH to a guest of the other replica', lambda: w.ssh(fip, 'cat /root/ran').strip() == 'user data of d', 120)
    until('it reaches one that was there', lambda: ' 0% packet loss' in w.ssh(fip, f'ping -c3 -i 0.2 -W2 {w.fixed["a"]}', ok=False), 30)
    w.say('a guest in it answers through its floating IP and reaches guests that were there')
    w.h1.sh('kill', '-CONT', str(server)); w.balancer.lead_to(('10.77.0.1', 8443), ('10.77.0.4', 8443))
    w.admin.compute.delete_server(made.id); w.admin.compute.wait_for_delete(made, interval=.3, wait=60)
    n.remove_interface_from_router(n.find_router('r'), subnet_id=sub.id); n.delete_network(net.id)
    until('the server of h1 is back', lambda: all(w.service(h).state == 'up' for h in ('h1', 'h2', 'h3')), 60)
    if w.double: raise Failed(f'ran twice: {w.double[:3]}')
    w.say('the server of h1 came back; the guest and its network are gone again')


def moved(w):
    """A cold migration with what is on the disk: there and back again, and there to stay."""
    c, fip = w.admin.compute, w.fips['c']
    w.ssh(fip, 'echo kept > /root/kept; sync')
    for decision, stays in (('revertResize', True), ('confirmResize', False)):
        was = w.at(w.c); began = time.time()
        if (r := w.act(w.c, {'migrate': {'host': 'h2'}})).status_code != 202: raise Failed(f'migrate: {r.status_code} {r.text}')
        c.wait_for_server(c.get_server(w.c.id), status='VERIFY_RESIZE', interval=.3, wait=150)
        if (there := w.at(w.c)) != 'h2': raise Failed(f'it is on {there}')
        until('the moved guest answers', lambda: w.ssh(fip, 'cat /root/kept').strip() == 'kept', 120)
        if (r := w.act(w.c, {decision: None})).status_code not in (202, 204): raise Failed(f'{decision}: {r.status_code} {r.text}')
        w.c = w.active(c.get_server(w.c.id))
        if w.at(w.c) != (was if stays else there): raise Failed(f'{decision} leaves it on {w.at(w.c)}')
        until('its guest answers', lambda: w.ssh(fip, 'cat /root/kept').strip() == 'kept', 120)
        until('the other host has nothing of it', lambda: sum(bool(h.guest(w.c.id)) for h in w.hosts) == 1, 30)
        w.say(f'{was} to {there}, {decision}: the guest has its disk and its addresses, {time.time() - began:.1f} s')
    if w.double: raise Failed(f'ran twice: {w.double[:3]}')


def attempt(work):
    try: return work()
    except Exception: return None


def loss(w):
    c = w.admin.compute
    ports = lambda: [(p.id, p.mac_address, p.fixed_ips[0]['ip_address']) for p in w.admin.network.ports(device_id=w.b.id)]
    was = ports()
    if (r := w.act(w.b, {'evacuate': {}})).status_code != 400: raise Failed(f'evacuate while the host lives: {r.status_code} {r.text}')
    qemu = w.h2.guest(w.b.id)
    # The worst case: the agent is dead, the host is cut off, its guests run on.
    agent = int(open(w.h2.state + '/run/agent.pid').read().split()[0])
    w.h2.sh('kill', '-9', str(agent)); w.h2.link('down'); cut = time.time()
    w.say('h2: agent killed with -9, links cut')
    w.force('h2', True)
    r = w.act(w.b, {'evacuate': {}})
    if r.status_code != 409 or 'lease' not in r.text: raise Failed(f'evacuate before proof: {r.status_code} {r.text}')
    if w.admin.compute.get_server(w.b.id).status != 'ACTIVE': raise Failed('a refusal changed the server')
    w.force('h2', False)
    until('the guard stops the guest', lambda: stat(qemu) == 'T', LEASE + 5)
    w.say(f'its guest was stopped by its guard {time.time() - cut:.1f} s after the cut (lease {LEASE} s)')
    until('the service is down', lambda: w.service('h2').state == 'down', DOWN + 10)
    if next(h for h in c.hypervisors() if h.name == 'h2').state != 'down': raise Failed('the hypervisor is not down')
    w.say('os-services and hypervisors say down')
    until('evacuation', lambda: w.act(w.b, {'evacuate': {}}).status_code == 200, 3 * LEASE)
    w.say(f'evacuation accepted {time.time() - cut:.1f} s after the cut')
    w.b = w.active(c.get_server(w.b.id))
    new = until('another host', lambda: (h := w.at(w.b)) and h != 'h2' and h, 10)
    if ports() != was: raise Failed(f'ports {was} became {ports()}')
    until('SSH to the evacuated guest', lambda: w.ssh(w.fips['b'], 'cat /root/ran').strip() == 'user data of b', 120)
    w.say(f'made anew on {new}: same port, MAC and addresses, floating IP answers')
    if stat(qemu) != 'T': raise Failed(f'the old guest is {stat(qemu)!r}')
    w.h2.link('up'); w.h2.agent()
    until('the old guest is removed', lambda: not w.h2.guest(w.b.id), 60)
    until('h2 is up again', lambda: w.service('h2').state == 'up', 60)
    until('the evacuated guest answers still', lambda: w.ssh(w.fips['b'], 'true') == '', 30)
    if w.double: raise Failed(f'ran twice: {w.double[:3]}')
    w.say(f'h2 came back and removed its guest without running it ({w.seen} looks, no double run)')
    again = w.active(w.server('again', 'h2', w.admin.network.find_network('one')))
    fip = w.floating(again)
    until('a new guest on h2', lambda: w.ssh(fip, f'ping -c1 -W2 {w.fixed["a"]} >/dev/null && echo ok').strip() == 'ok', 120)
    qemu = w.h2.guest(again.id)
    guard = int(open_(f'/proc/{qemu}/stat').rpartition(') ')[2].split()[1])
    if 'guest-guard' not in open_(f'/proc/{guard}/cmdline'): raise Failed(f'the parent of a guest is {open_(f"/proc/{guard}/cmdline")!r}')
    os.kill(guard, signal.SIGKILL)
    until('a guest dies with its guard', lambda: not w.h2.guest(again.id), 10)
    w.say('h2 carries guests again; a guest does not outlive its guard')


def removal(w):
    c = w.admin.compute
    last = w.active(w.server('last', 'h3', w.admin.network.find_network('one')))
    r = c.delete(f'/os-services/{w.service("h3").id}', microversion='2.53')
    if r.status_code != 409: raise Failed(f'a host with servers was removed: {r.status_code}')
    for server in (w.a, w.b, w.c, last):
        if w.at(server) == 'h3': c.delete_server(server.id); c.wait_for_delete(server, interval=.3, wait=60)
    r = c.delete(f'/os-services/{w.service("h3").id}', microversion='2.53')
    if r.status_code != 204: raise Failed(f'removing h3: {r.status_code} {r.text}')
    until('h3 is refused', lambda: 'was removed from this cloud' in open_(w.work + '/h3-agent.log'), 40)
    time.sleep(1)
    if any(s.host == 'h3' for s in c.services()): raise Failed('a removed host came back')
    w.say('a removed host is refused though its certificate is good')


def purge(w):
    for pid, line in w.h4.inside().items():
        if 'allod server' in line: os.kill(pid, signal.SIGTERM)
    if left := until_empty(w.h4): raise Failed(f'h4: the replica does not end: {left}')
    for host in (w.h3, w.h2, w.h1):
        host.sh(w.allod, 'down', '--state', host.state, '--purge', timeout=120)
        for agent in host.agents: agent.wait(30)
        left = until_empty(host)
        if left: raise Failed(f'{host.name}: processes left: {left}')
        if os.path.exists(host.state): raise Failed(f'{host.name}: the state directory is left')
        links = {l.split(': ')[1].split('@')[0] for l in host.sh('ip', '-o', 'link').splitlines()}
        strange = links - {'lo', 'mgmt0', 'under0', 'tunl0', 'gre0', 'sit0', 'ip6tnl0', 'erspan0', 'gretap0', 'ip_vti0', 'ip6_vti0', 'ip6gre0'}
        if strange: raise Failed(f'{host.name}: links left: {strange}')
        if host.sh('ls', '/run/netns').strip(): raise Failed(f'{host.name}: namespaces left')
        if f'10.78.0.{host.number}/24' not in host.sh('ip', '-o', 'address', 'show', 'dev', 'under0'): raise Failed(f'{host.name}: the underlay lost its address')
        if host.sh('nft', 'list', 'ruleset').strip(): raise Failed(f'{host.name}: nftables left')
    w.say('down --purge left nothing on any host')


def until_empty(host):
    end = time.time() + 10
    while (left := {p: l for p, l in host.inside().items() if stat(p) not in ('Z', 'X', '')}) and time.time() < end: time.sleep(.2)
    return left


STEPS = [join, southbound, guests, certificates, replica, moved, loss, removal, purge]


def inside(a):
    sh('ip', 'link', 'set', 'lo', 'up')
    w = None
    try:
        w = World(os.path.abspath(a.allod), os.path.abspath(a.image), a.work)
        for step in STEPS:
            print(f'== {step.__name__}', flush=True); step(w)
        print(f'{len(STEPS)} passed, 0 failed'); return 0
    except Exception as e:
        import traceback
        traceback.print_exc()
        print(f'FAILED: {type(e).__name__}: {e}', flush=True)
        for log in ('h1/log/server.log', 'h1/log/agent.log', 'h2-agent.log', 'h3-agent.log', 'h4-server.log'):
            print(f'--- {log}'); print(''.join(open_(f'{a.work}/{log}').splitlines(True)[-20:]))
        print('0 passed, 1 failed')
        if a.hold: print('held: press ^C'); signal.pause()
        return 1


def init(name):
    """Process 1 of a host."""
    socket.sethostname(name)
    os.makedirs('/run/netns', exist_ok=True)
    sh('mount', '-t', 'tmpfs', 'tmpfs', '/run/netns'); sh('ip', 'link', 'set', 'lo', 'up')
    print('ready', flush=True)
    while True:
        try: os.wait()
        except ChildProcessError: time.sleep(.2)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('allod', nargs='?'); ap.add_argument('image', nargs='?'); ap.add_argument('--hold', action='store_true', help='wait after a failure')
    ap.add_argument('--inside', action='store_true'); ap.add_argument('--work', default=''); ap.add_argument('--init', default='')
    a = ap.parse_args()
    if a.init: return init(a.init)
    if a.inside: return inside(a)
    work = tempfile.mkdtemp(prefix='allod-'); os.chmod(work, 0o711)
    try:
        return subprocess.run(['unshare', '--net', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc', sys.executable, __file__,
                               *sys.argv[1:], '--inside', '--work', work]).returncode
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(main())
