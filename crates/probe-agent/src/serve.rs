//! Answers other agents: UDP comes back as it came; on TCP the first byte says what is wanted.

use std::io::{Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Comes back.
pub(crate) const ECHO: u8 = b'E';
/// Is counted until the sender has sent all; then how much, and in how many microseconds.
pub(crate) const SINK: u8 = b'S';

/// Serves until it is ended.
pub(crate) fn serve(port: u16) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                // What does not arrive is the other's to count.
                let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
            }
        }
    });
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(stream));
    }
    Ok(String::new())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    match first {
        [ECHO] => {
            let mut buffer = [0; 2048];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    length => stream.write_all(buffer.get(..length).unwrap_or_default())?,
                }
            }
        }
        [SINK] => {
            let mut buffer = vec![0; 256 * 1024];
            let (begin, mut total) = (Instant::now(), 0u64);
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    length => total += u64::try_from(length).unwrap_or(0),
                }
            }
            let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
            stream.write_all(&total.to_be_bytes())?;
            stream.write_all(&micros.to_be_bytes())
        }
        // A load balancer asks who answers.
        [b'G'] => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let name = name.trim();
            // The request is not looked at, but read: a connection closed with something unread is reset.
            let mut request = [0; 4096];
            let _ = stream.read(&mut request)?;
            let length = name.len();
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{name}")
        }
        _ => Ok(()),
    }
}
