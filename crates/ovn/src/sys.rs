//! What the kernel must be asked directly: namespaces, taps, offloads, process handles.
//!
//! All `unsafe` of this crate is here; each block calls one system call with memory that outlives the call.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use tokio::io::unix::AsyncFd;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// Where `ip netns` keeps the handles of named namespaces.
pub fn netns_path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Runs `f` on a thread of its own inside a network namespace (`None`: where we are). Never on a thread of the
/// runtime: what runs there later would be in the wrong namespace.
///
/// # Errors
/// If the namespace cannot be entered, or what `f` answers.
pub async fn in_netns<T: Send + 'static>(
    netns: Option<&str>,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let path = netns.map(netns_path);
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let entered = path.map_or(Ok(()), |path| {
            let file = File::open(&path).map_err(|e| named(&e, &path.display().to_string()))?;
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
        });
        let _ = done.send(entered.and_then(|()| f()));
    })?;
    result.await.map_err(|_| io::Error::other("the namespace's thread died"))?
}

/// The error with what it is about in front.
pub fn named(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Lets `command` run inside a network namespace.
///
/// # Errors
/// If the namespace is not there.
pub fn enter_netns(command: &mut tokio::process::Command, netns: Option<&str>) -> io::Result<()> {
    let Some(name) = netns else { return Ok(()) };
    let path = netns_path(name);
    let file = File::open(&path).map_err(|e| named(&e, &path.display().to_string()))?;
    // SAFETY: between fork and exec only the async-signal-safe system call setns is made, on a file opened before.
    unsafe {
        command.pre_exec(move || {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
        });
    }
    Ok(())
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("'{name}' is no interface name")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ioctl_socket() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the answer is checked before it is owned.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        check(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Makes a persistent tap without vnet header that the user `owner` may open. One that is there and in use stays.
///
/// # Errors
/// Of the system calls.
pub fn make_tap(name: &str, owner: u32) -> io::Result<()> {
    let tun =
        File::options().read(true).write(true).open("/dev/net/tun").map_err(|e| named(&e, "/dev/net/tun"))?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is a valid ifreq that outlives the call.
    match check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, &raw mut request) }) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
        other => other?,
    }
    // SAFETY: these take plain integers.
    unsafe {
        check(libc::ioctl(tun.as_raw_fd(), TUNSETOWNER as _, libc::c_ulong::from(owner)))?;
        check(libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST as _, 1 as libc::c_ulong))
    }
}

/// Whether a process holds the tap of that name. One that is not there is not in use.
///
/// # Errors
/// Of the system calls.
pub fn tap_in_use(name: &str) -> io::Result<bool> {
    if !link_exists(name) {
        return Ok(false);
    }
    let tun =
        File::options().read(true).write(true).open("/dev/net/tun").map_err(|e| named(&e, "/dev/net/tun"))?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is a valid ifreq that outlives the call.
    match check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, &raw mut request) }) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        other => other.map(|()| false),
    }
}

/// Sets the MTU (if given) and brings the interface up.
///
/// # Errors
/// Of the system calls.
pub fn link_up(name: &str, mtu: Option<u32>) -> io::Result<()> {
    let socket = ioctl_socket()?;
    let mut request = request(name)?;
    // SAFETY: the request is a valid ifreq that outlives the calls; after SIOCGIFFLAGS the flags member is set.
    unsafe {
        if let Some(mtu) = mtu {
            request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).unwrap_or(1500);
            check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU as _, &raw mut request))?;
        }
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request))
    }
}

/// Switches transmit checksum offload off: what sends into a userspace datapath must send whole packets.
///
/// # Errors
/// Of the system calls.
pub fn tx_checksum_off(name: &str) -> io::Result<()> {
    #[repr(C)]
    struct EthtoolValue {
        cmd: u32,
        data: u32,
    }
    let socket = ioctl_socket()?;
    let mut value = EthtoolValue { cmd: ETHTOOL_STXCSUM, data: 0 };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: request and value outlive the call; the kernel reads 8 bytes for this command.
    match check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) }) {
        // A device without the offload has nothing to switch off.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(()),
        other => other,
    }
}

/// Whether an interface of that name is in the namespace of this thread.
pub fn link_exists(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

/// A handle that becomes readable when the process ends, whoever its parent is.
///
/// # Errors
/// `ESRCH` if there is no such process.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the answer is checked before it is owned.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(libc::c_int::try_from(fd).unwrap_or(-1)))
    }
}

/// Waits until the process ends.
///
/// # Errors
/// If it cannot be watched.
pub async fn ended(pid: u32) -> io::Result<()> {
    let handle = match pidfd(pid) {
        Ok(handle) => handle,
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(e) => return Err(e),
    };
    // SAFETY: an owned file descriptor stays open and the same until the `AsyncFd` drops it.
    let handle = unsafe { AsyncFd::register_with_interest(handle, tokio::io::Interest::READABLE) }?;
    handle.readable().await.map(|_| ())
}

/// Sends a signal to a process, through a handle so that a reused number is never hit between check and signal.
///
/// # Errors
/// Of the system calls; a process that is gone is no error.
pub fn signal(handle: &OwnedFd, signal: nix::sys::signal::Signal) -> io::Result<()> {
    // SAFETY: a plain system call with no memory passed.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            libc::c_long::from(handle.as_raw_fd()),
            libc::c_long::from(signal as libc::c_int),
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match answer {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(e),
        },
    }
}

/// Whether the process lives and its command line has `mark` as one argument. A zombie does not live.
pub fn runs_with(pid: u32, mark: &str) -> bool {
    let alive = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false);
    alive
        && std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|b| *b == 0).any(|argument| argument == mark.as_bytes()))
}

/// Runs a program in a namespace, with `input` on its standard input; an error carries what it said.
///
/// # Errors
/// If it cannot be started or does not succeed.
pub async fn run(netns: Option<&str>, program: &str, args: &[&str], input: &str) -> io::Result<String> {
    use tokio::io::AsyncWriteExt;
    let mut command = tokio::process::Command::new(find(program));
    command.args(args).kill_on_drop(true);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    enter_netns(&mut command, netns)?;
    let mut child = command.spawn().map_err(|e| named(&e, program))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading its input is judged by its exit status.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", args.join(" "), said.trim())))
}

/// Where a program is: daemons and plumbing tools live in `sbin`, which is not on every `PATH`.
pub fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more =
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(more).map(|dir| dir.join(program)).find(|p| p.is_file());
    found.unwrap_or_else(|| PathBuf::from(program))
}
