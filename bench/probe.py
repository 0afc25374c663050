#!/usr/bin/env python3
"""What `allod probe` costs: `probe.py ALLOD [--server ALLOD] [--calls N] [--iterations N] [--parallel N]`.

N iterations of N calls each from one process against a cloud with simulated hosts, a record for each call: rate, CPU of the probe
per call, its memory at most, and what a record's time has beyond its call's.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, time

SCENARIO = '''
name: bench
set: {{calls: {calls}}}
parallel: {parallel}
steps:
- id: call
  count: "{{calls}}"
  call: {{service: network, op: network.list, path: "/networks?limit=1"}}
'''


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('allod'); ap.add_argument('--server', default=''); ap.add_argument('--calls', type=int, default=10_000); ap.add_argument('--parallel', type=int, default=16)
    ap.add_argument('--iterations', type=int, default=6)
    a = ap.parse_args()
    work = tempfile.mkdtemp(prefix='allod-bench-'); state = f'{work}/state'; server = a.server or a.allod
    try:
        subprocess.run([server, 'up', '--state', state, '--listen', '127.0.0.1:0', '--sim-hosts', '1', '--detach'], check=True, capture_output=True, timeout=240)
        def run(calls, iterations):
            path = f'{work}/scenario.yaml'
            with open(path, 'w') as f: f.write(SCENARIO.format(calls=calls, parallel=a.parallel))
            env = {**os.environ, 'OS_CLIENT_CONFIG_FILE': f'{state}/clouds.yaml'}
            begin = time.time()
            with open(f'{work}/out', 'w') as out:
                p = subprocess.Popen([a.allod, 'probe', '--cloud', 'allod', '--state', f'{work}/probe', '--scenario', path, '-n', str(iterations), '--json'], stdout=out, env=env)
                _, status, used = os.wait4(p.pid, 0)
            wall = time.time() - begin
            with open(f'{work}/out') as f: records = [r for line in f for r in json.loads(line)['iteration']['records']]
            failed = [r for r in records if r['class'] != 'ok']
            if status or failed or len(records) != calls * iterations: sys.exit(f'exit {status}, {len(records)} records, {len(failed)} failed: {failed[:2]}')
            beyond = sorted(r['us'] - sum(c['total_us'] for c in r['attempts']) for r in records)
            return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, beyond
        _, idle, _, _ = run(1, 1)
        wall, cpu, rss, beyond = run(a.calls, a.iterations)
        n = a.calls * a.iterations
        print(f'{n} calls, {a.parallel} at a time: {wall:.1f} s, {n / wall * 60:.0f} a minute; {(cpu - idle) / n * 1000:.3f} ms CPU per call ({idle * 1000:.0f} ms to start); '
              f'{rss:.0f} MiB; a record takes {beyond[n // 2]} µs (p99 {beyond[n * 99 // 100]}) longer than its call')
    finally:
        subprocess.run([server, 'down', '--state', state, '--purge'], capture_output=True)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == '__main__': main()
