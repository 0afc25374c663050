#!/usr/bin/env python3
"""Debian's archive for guests that have no internet: `mirror.py ADDRESS:PORT`, on an address of this machine that they reach.

What they ask for under /debian/ and /debian-security/ is fetched by this machine's apt, with its proxies and credentials, and
passed on as it is: the guests' own apt checks Debian's signatures. Nothing else is served. Files are kept while it runs.
"""
import http.server, os, re, shutil, socket, subprocess, sys, tempfile, threading

import common  # an end by SIGTERM passes through `finally`

HELPER, UPSTREAM = '/usr/lib/apt/apt-helper', 'http://deb.debian.org'
PATH = re.compile(r'/debian(-security)?/(dists|pool)(/[A-Za-z0-9_+~-][A-Za-z0-9._+~%:-]*)+')


class Mirror(http.server.ThreadingHTTPServer):
    """Serves on a socket that listens, of whatever namespace."""
    daemon_threads = True

    def __init__(self, listening):
        super().__init__(('', 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.kept, self.asked = listening, tempfile.mkdtemp(prefix='allod-mirror-'), []
        self.places, self.lock = {}, threading.Lock()

    def file(self, path):
        """The file of a path, fetched if it is asked for the first time; None if there is none."""
        with self.lock: lock, place = self.places.setdefault(path, (threading.Lock(), f'{self.kept}/{len(self.places)}'))
        with lock:
            if not os.path.exists(place):
                got = subprocess.run([HELPER, 'download-file', UPSTREAM + path, place + '.part'], capture_output=True, text=True, timeout=120)
                if got.returncode: return None
                os.rename(place + '.part', place)
        return place

    def end(self):
        self.shutdown(); self.server_close()
        shutil.rmtree(self.kept, ignore_errors=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, timeout = 'HTTP/1.1', 60

    def do_GET(self):
        path = self.server.file(self.path) if PATH.fullmatch(self.path) else None
        self.server.asked.append((self.path, path is not None))
        if path is None: return self.send_error(404)
        with open(path, 'rb') as f:
            self.send_response(200)
            self.send_header('Content-Length', str(os.fstat(f.fileno()).st_size)); self.send_header('Content-Type', 'application/octet-stream')
            self.end_headers()
            shutil.copyfileobj(f, self.wfile)

    def log_message(self, *_): pass


def main():
    host, port = sys.argv[1].rsplit(':', 1)
    mirror = Mirror(socket.create_server((host, int(port))))
    print(f'http://{host}:{mirror.socket.getsockname()[1]}/debian/', flush=True)
    try: mirror.serve_forever()
    except KeyboardInterrupt: pass
    finally: mirror.end()


if __name__ == '__main__': main()
