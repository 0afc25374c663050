//! What gets through to others, and how fast.

use std::io::{Read, Result, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::serve::{ECHO, SINK};
use crate::{Json, median_us};

/// How long the last packet is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two packets.
const PAUSE: Duration = Duration::from_millis(20);
/// TCP connections to each peer.
const CONNECTIONS: usize = 3;

/// All peers at once; a line for each.
pub(crate) fn matrix(port: u16, count: u16, peers: &[Ipv4Addr]) -> String {
    let asking: Vec<_> = peers
        .iter()
        .map(|peer| {
            let peer = *peer;
            std::thread::spawn(move || {
                Json::default()
                    .text("peer", &peer.to_string())
                    .object("icmp", icmp(peer, count))
                    .object("udp", udp(peer, port, count))
                    .object("tcp", tcp(peer, port))
                    .done()
            })
        })
        .collect();
    let lines: Vec<String> = asking.into_iter().filter_map(|t| t.join().ok()).collect();
    lines.join("\n")
}

#[expect(clippy::cast_precision_loss, reason = "counts")]
fn counted(sent: usize, times: Vec<Duration>) -> Json {
    Json::default()
        .number("sent", sent as f64)
        .number("received", times.len() as f64)
        .number("median_us", median_us(times))
}

fn udp(peer: Ipv4Addr, port: u16, count: u16) -> Json {
    let trying = || -> Result<Vec<Duration>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(SocketAddrV4::new(peer, port))?;
        let (mut times, mut sent) = (vec![None; usize::from(count)], Vec::new());
        for number in 0..count {
            // A refusal that an earlier packet met shows here; it is a packet that did not come back.
            let _ = socket.send(&number.to_be_bytes());
            sent.push(Instant::now());
            take(&socket, PAUSE, &sent, &mut times)?;
        }
        take(&socket, PATIENCE, &sent, &mut times)?;
        Ok(times.into_iter().flatten().collect())
    };
    match trying() {
        Ok(times) => counted(count.into(), times),
        Err(e) => counted(count.into(), Vec::new()).text("error", &e.to_string()),
    }
}

/// Takes answers as they come, until all are there or the time is over.
fn take(socket: &UdpSocket, limit: Duration, sent: &[Instant], times: &mut [Option<Duration>]) -> Result<()> {
    let end = Instant::now() + limit;
    let mut buffer = [0; 64];
    while sent.iter().zip(times.iter()).any(|(_, t)| t.is_none()) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left))?;
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        note(buffer.get(..length).unwrap_or_default(), sent, times);
    }
    Ok(())
}

/// A packet that came back.
fn note(packet: &[u8], sent: &[Instant], times: &mut [Option<Duration>]) {
    let number = packet.first_chunk::<2>().map(|b| usize::from(u16::from_be_bytes(*b)));
    let Some(number) = number else { return };
    if let (Some(sent), Some(time)) = (sent.get(number), times.get_mut(number)) {
        time.get_or_insert(sent.elapsed());
    }
}

fn tcp(peer: Ipv4Addr, port: u16) -> Json {
    let once = || -> Result<Duration> {
        let begin = Instant::now();
        let mut stream = TcpStream::connect_timeout(&SocketAddrV4::new(peer, port).into(), PATIENCE * 3)?;
        let connected = begin.elapsed();
        stream.set_read_timeout(Some(PATIENCE * 3))?;
        stream.write_all(&[ECHO, b'x'])?;
        stream.read_exact(&mut [0])?;
        Ok(connected)
    };
    let results: Vec<Result<Duration>> = (0..CONNECTIONS).map(|_| once()).collect();
    let error = results.iter().find_map(|r| r.as_ref().err()).map(ToString::to_string);
    let json = counted(CONNECTIONS, results.into_iter().flatten().collect());
    match error {
        Some(error) => json.text("error", &error),
        None => json,
    }
}

/// A socket for echo requests, and whether answers come with their IP header.
fn echo_socket() -> nix::Result<(OwnedFd, bool)> {
    let open = |kind| socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp);
    match open(SockType::Datagram) {
        Ok(fd) => Ok((fd, false)),
        Err(_) => open(SockType::Raw).map(|fd| (fd, true)),
    }
}

fn icmp(peer: Ipv4Addr, count: u16) -> Json {
    let (fd, header) = match echo_socket() {
        Ok(found) => found,
        Err(e) => return Json::default().text("skipped", &format!("no socket for it: {e}")),
    };
    let mark = mark(peer);
    let trying = || -> nix::Result<Vec<Duration>> {
        let to = SockaddrIn::from(SocketAddrV4::new(peer, 0));
        let (mut times, mut sent) = (vec![None; usize::from(count)], Vec::new());
        for number in 0..count {
            let sending = sendto(fd.as_raw_fd(), &request(mark, number), &to, MsgFlags::empty());
            sent.push(Instant::now());
            // No route: it does not come back.
            if sending.is_ok() {
                collect(&fd, header, mark, PAUSE, &sent, &mut times)?;
            }
        }
        collect(&fd, header, mark, PATIENCE, &sent, &mut times)?;
        Ok(times.into_iter().flatten().collect())
    };
    match trying() {
        Ok(times) => counted(count.into(), times),
        Err(e) => counted(count.into(), Vec::new()).text("error", &e.to_string()),
    }
}

/// Tells our answers from those of another agent in the same guest.
fn mark(peer: Ipv4Addr) -> [u8; 8] {
    let mut mark = [0; 8];
    let id = std::process::id().to_be_bytes();
    for (to, from) in mark.iter_mut().zip(id.iter().chain(&peer.octets())) {
        *to = *from;
    }
    mark
}

/// An echo request: type, code, checksum, identifier, number, and our mark.
fn request(mark: [u8; 8], number: u16) -> Vec<u8> {
    let [a, b, c, d, ..] = mark;
    let mut packet = vec![8, 0, 0, 0, a ^ c, b ^ d];
    packet.extend(number.to_be_bytes());
    packet.extend(mark);
    let words = packet.chunks(2).map(|w| w.iter().fold(0u32, |sum, b| sum << 8 | u32::from(*b)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let check = u16::try_from(!sum & 0xffff).unwrap_or(0).to_be_bytes();
    packet.splice(2..4, check);
    packet
}

/// Takes answers until all are there or the time is over.
fn collect(
    fd: &OwnedFd,
    header: bool,
    mark: [u8; 8],
    limit: Duration,
    sent: &[Instant],
    times: &mut [Option<Duration>],
) -> nix::Result<()> {
    let end = Instant::now() + limit;
    let mut buffer = [0; 256];
    while sent.iter().zip(times.iter()).any(|(_, t)| t.is_none()) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let micros = i64::try_from(left.as_micros()).unwrap_or(1_000_000).max(1);
        setsockopt(fd, sockopt::ReceiveTimeout, &TimeVal::microseconds(micros))?;
        let length = match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::EHOSTUNREACH | Errno::ECONNREFUSED) => continue,
            Err(e) => return Err(e),
        };
        let packet = buffer.get(..length).unwrap_or_default();
        let skip = if header { packet.first().map_or(0, |b| usize::from(b & 15) * 4) } else { 0 };
        let packet = packet.get(skip..).unwrap_or_default();
        if packet.first() == Some(&0) && packet.get(8..16) == Some(&mark) {
            note(packet.get(6..8).unwrap_or_default(), sent, times);
        }
    }
    Ok(())
}

/// Sends as much as goes for a while; what was sent, and what the other end counted.
pub(crate) fn throughput(port: u16, time: Duration, peer: Ipv4Addr) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = |bytes: u64, micros: u64| bytes as f64 * 8.0 / micros.max(1) as f64;
    let trying = || -> Result<Json> {
        let mut stream = TcpStream::connect_timeout(&SocketAddrV4::new(peer, port).into(), PATIENCE * 5)?;
        stream.set_write_timeout(Some(time + PATIENCE * 5))?;
        stream.set_read_timeout(Some(time + PATIENCE * 5))?;
        stream.write_all(&[SINK])?;
        let chunk = vec![0x5a; 128 * 1024];
        let (begin, mut bytes) = (Instant::now(), 0u64);
        while begin.elapsed() < time {
            stream.write_all(&chunk)?;
            bytes += u64::try_from(chunk.len()).unwrap_or(0);
        }
        stream.shutdown(Shutdown::Write)?;
        let mut told = [0; 16];
        stream.read_exact(&mut told)?;
        let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let part =
            |at: usize| told.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
        Ok(Json::default()
            .number("sent_mbit_s", rate(bytes, micros))
            .number("received_mbit_s", rate(part(0), part(8))))
    };
    trying().unwrap_or_else(|e| Json::default().text("error", &e.to_string())).done()
}
