#!/usr/bin/env python3
"""What `allod probe` costs: `probe.py ALLOD [--server ALLOD] [--calls N] [--parallel N]`.

N calls from one process against a cloud with simulated hosts, one record each: rate, CPU of the probe per call, its memory.
"""
import argparse, json, os, resource, shutil, subprocess, sys, tempfile, time

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
    a = ap.parse_args()
    work = tempfile.mkdtemp(prefix='allod-bench-'); state = f'{work}/state'; server = a.server or a.allod
    try:
        subprocess.run([server, 'up', '--state', state, '--listen', '127.0.0.1:0', '--sim-hosts', '1', '--detach'], check=True, capture_output=True, timeout=240)
        def run(calls):
            path = f'{work}/scenario.yaml'
            with open(path, 'w') as f: f.write(SCENARIO.format(calls=calls, parallel=a.parallel))
            env = {**os.environ, 'OS_CLIENT_CONFIG_FILE': f'{state}/clouds.yaml'}
            begin = time.time()
            with open(f'{work}/out', 'w') as out:
                p = subprocess.Popen([a.allod, 'probe', '--cloud', 'allod', '--state', f'{work}/probe', '--scenario', path, '--json'], stdout=out, env=env)
                _, status, used = os.wait4(p.pid, 0)
            wall = time.time() - begin
            iteration = json.load(open(f'{work}/out'))['iteration']
            failed = [r for r in iteration['records'] if r['class'] != 'ok']
            if status or failed or len(iteration['records']) != calls: sys.exit(f'exit {status}, {len(iteration["records"])} records, {len(failed)} failed: {failed[:2]}')
            return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        _, idle, _ = run(1)
        wall, cpu, rss = run(a.calls)
        print(f'{a.calls} calls, {a.parallel} at a time: {wall:.1f} s, {a.calls / wall * 60:.0f} a minute; '
              f'{(cpu - idle) / a.calls * 1000:.3f} ms CPU per call ({idle * 1000:.0f} ms to start); {rss:.0f} MiB')
    finally:
        subprocess.run([server, 'down', '--state', state, '--purge'], capture_output=True)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == '__main__': main()
