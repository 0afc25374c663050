//! Names of flavors: the grammar of scs-0100, in its present form (v3, the same as v2) and the old one (v1, with other
//! separators), which is tolerated.

/// What a name says.
#[derive(Debug, Clone, PartialEq)]
pub struct FlavorName {
    /// CPUs.
    pub cpus: u64,
    /// `L`, `V`, `T` or `C`.
    pub cpu_kind: char,
    /// GiB of memory.
    pub ram: f64,
    /// Disks, if the name has a part about them.
    pub disk: Option<Disk>,
    /// Whether it was written in the old form.
    pub old: bool,
}

/// The part about disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// How many.
    pub count: u64,
    /// GiB of each; `None`: as many as the image needs.
    pub gib: Option<u64>,
    /// `n`, `h`, `s`, `p`.
    pub kind: Option<char>,
}

/// Separators and hypervisors of one form of the grammar.
struct Form {
    inner: u8,
    outer: u8,
    hypervisors: &'static [&'static str],
}

const PRESENT: Form =
    Form { inner: b'-', outer: b'_', hypervisors: &["kvm", "xen", "vmw", "hyv", "bms", "chy"] };
const OLD: Form = Form { inner: b':', outer: b'-', hypervisors: &["kvm", "xen", "vmw", "hyv", "bms"] };

/// Generations per vendor of CPUs; a part without a generation is always right.
const CPU_GENERATIONS: &[(u8, u64)] = &[(b'i', 6), (b'z', 6), (b'a', 5), (b'r', 0)];
/// Generations per brand of GPUs.
const GPU_GENERATIONS: &[(u8, &[&str])] = &[
    (b'N', &["", "f", "k", "m", "p", "v", "t", "a", "l", "g", "b", "u"]),
    (b'A', &["", "0.4", "0.5", "1", "1.1", "2", "2.1", "3", "3.1", "3.5", "4", "4.1", "5.1"]),
    (b'I', &["", "0.9", "0.95", "1", "2", "3", "4"]),
];

/// Reads a name that begins with `SCS-`; the reason if it does not follow the grammar.
pub fn parse(name: &str) -> Result<FlavorName, String> {
    let rest = name.strip_prefix("SCS-").ok_or("does not begin with SCS-")?;
    match (Reader { text: rest.as_bytes(), at: 0 }).name(&PRESENT) {
        Ok(found) => Ok(found),
        Err(reason) => match (Reader { text: rest.as_bytes(), at: 0 }).name(&OLD) {
            Ok(found) => Ok(FlavorName { old: true, ..found }),
            Err(_) => Err(reason),
        },
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn name(mut self, form: &Form) -> Result<FlavorName, String> {
        let cpus = self.digits();
        let cpu_kind =
            self.one_of(b"LVTC").ok_or("no letter for the kind of CPU (L, V, T, C) after their number")?;
        let cpus = number(&cpus).ok_or("no number of CPUs, or 0")?;
        self.one_of(b"i");
        if !self.eat(form.inner) {
            return Err("no memory after the CPUs".into());
        }
        let ram = self.ram()?;
        self.one_of(b"u");
        self.one_of(b"o");
        let disk = self.disk(form)?;
        self.word(form, form.hypervisors);
        self.word(form, &["hwv"]);
        self.cpu(form)?;
        self.gpu(form)?;
        self.word(form, &["ib"]);
        if self.at != self.text.len() {
            let rest = self.text.get(self.at..).unwrap_or_default();
            return Err(format!("what does {:?} mean there?", String::from_utf8_lossy(rest)));
        }
        Ok(FlavorName { cpus, cpu_kind: char::from(cpu_kind), ram, disk, old: false })
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn one_of(&mut self, set: &[u8]) -> Option<u8> {
        let found = self.peek().filter(|b| set.contains(b))?;
        self.at += 1;
        Some(found)
    }

    fn take(&mut self, wanted: impl Fn(u8) -> bool) -> String {
        let from = self.at;
        while self.peek().is_some_and(&wanted) {
            self.at += 1;
        }
        String::from_utf8_lossy(self.text.get(from..self.at).unwrap_or_default()).into_owned()
    }

    fn digits(&mut self) -> String {
        self.take(|b| b.is_ascii_digit())
    }

    /// An outer separator and one of the words.
    fn word(&mut self, form: &Form, words: &[&str]) -> bool {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let Some(rest) = rest.strip_prefix(&[form.outer]) else { return false };
        match words.iter().find(|w| rest.starts_with(w.as_bytes())) {
            Some(word) => {
                self.at += 1 + word.len();
                true
            }
            None => false,
        }
    }

    fn ram(&mut self) -> Result<f64, String> {
        let text = self.take(|b| b.is_ascii_digit() || b == b'.');
        let wrong = || format!("{text:?} is no amount of memory (GiB, in steps of 0.5)");
        let ram: f64 = text.parse().map_err(|_| wrong())?;
        if ram > 0.0 && ram.is_finite() && (2.0 * ram).fract() == 0.0 { Ok(ram) } else { Err(wrong()) }
    }

    /// `-`, then how many, how large, of which kind; all may be missing.
    fn disk(&mut self, form: &Form) -> Result<Option<Disk>, String> {
        if !self.eat(form.inner) {
            return Ok(None);
        }
        let begin = self.at;
        let first = self.digits();
        let count = if self.eat(b'x') {
            if first.is_empty() { 1 } else { number(&first).ok_or("no number of disks, or 0")? }
        } else {
            self.at = begin;
            1
        };
        let size = self.digits();
        let gib = match size.as_str() {
            "" => None,
            size => Some(number(size).ok_or("a disk of 0 GiB")?),
        };
        Ok(Some(Disk { count, gib, kind: self.one_of(b"nhsp").map(char::from) }))
    }

    fn cpu(&mut self, form: &Form) -> Result<(), String> {
        let begin = self.at;
        if !self.eat(form.outer) {
            return Ok(());
        }
        let Some(vendor) = self.one_of(b"izar") else {
            self.at = begin;
            return Ok(());
        };
        let generation = self.digits();
        let fast = self.take(|b| b == b'h');
        // Without this end it is another part (`_ib`).
        if self.peek().is_some_and(|b| b != form.outer) {
            self.at = begin;
            return Ok(());
        }
        let last = CPU_GENERATIONS.iter().find(|(v, _)| *v == vendor).map_or(0, |(_, last)| *last);
        if !generation.is_empty() && generation.parse::<u64>().map_or(true, |g| g > last) {
            return Err(format!("no generation {generation} of CPUs {}", char::from(vendor)));
        }
        if fast.len() > 3 { Err("more than three h".into()) } else { Ok(()) }
    }

    fn gpu(&mut self, form: &Form) -> Result<(), String> {
        let begin = self.at;
        let found = self.eat(form.outer) && self.one_of(b"gG").is_some();
        let Some(brand) = self.one_of(b"NAI").filter(|_| found) else {
            self.at = begin;
            return Ok(());
        };
        let inner = form.inner;
        let generation = self.take(|b| b != inner && b != b'h');
        let known = GPU_GENERATIONS.iter().find(|(b, _)| *b == brand).map_or(&[""][..], |(_, g)| g);
        if !known.contains(&generation.as_str()) {
            return Err(format!("no generation {generation:?} of GPUs {}", char::from(brand)));
        }
        for what in ["compute units", "video memory"] {
            let before = self.at;
            if self.eat(inner) {
                let digits = self.digits();
                if digits.is_empty() {
                    self.at = before;
                } else if number(&digits).is_none() {
                    return Err(format!("0 as {what}"));
                }
            }
            if self.take(|b| b == b'h').len() > 2 {
                return Err(format!("more than two h after {what}"));
            }
        }
        Ok(())
    }
}

/// A positive number.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_right() {
        for name in [
            "SCS-1V-2",
            "SCS-1V-0.5",
            "SCS-2C-4-3x10s_bms_z3",
            "SCS-16T-64-200s_GNa-72-24_ib",
            "SCS-4Vi-16u",
            "SCS-4V-16uo",
            "SCS-8V-32-n",
            "SCS-2C-4-",
            "SCS-1L-1-5_kvm_hwv_i3hh",
            "SCS-1V-2_ib",
            "SCS-1V-2_i",
            "SCS-1V-2_gNa-14-6h",
            "SCS-2V-4_chy",
            "SCS-1V:2",
            "SCS-2V:4:20s-kvm-hwv",
            "SCS-1V-2_a1",
            "SCS-1V-2_GA3-304h-192hh",
            "SCS-1V-1.",
            "SCS-1V-.5",
        ] {
            assert!(parse(name).is_ok(), "{name}: {:?}", parse(name));
        }
    }

    #[test]
    fn names_that_are_wrong() {
        for name in [
            "SCS-2-4",
            "SCS-1V-1.3",
            "SCS-4V-16_hwv_kvm",
            "SCS-2V-4-1.5n",
            "SCS-2v-4",
            "SCS-",
            "SCS-V-4",
            "SCS-0V-4",
            "SCS-1V-0",
            "SCS-1V-2_i7",
            "SCS-1V-2_r1",
            "SCS-1V-2-0",
            "SCS-1V-2-0x5",
            "SCS-1V-2_i3hhhh",
            "SCS-1V-2_GNx",
            "SCS-1V-2_GNa_ib",
            "SCS-1V:2_kvm",
            "SCS-1V-2 ",
            "SCS-2V:4-chy",
            "SCS-1V-2.5.5",
            "SCS-1V-4ou",
            "SCS-1V",
        ] {
            assert!(parse(name).is_err(), "{name}: {:?}", parse(name));
        }
    }

    #[test]
    fn what_a_name_says() {
        let found = parse("SCS-2C-4.5-3x10s_bms_z3").unwrap();
        assert_eq!((found.cpus, found.cpu_kind, found.ram, found.old), (2, 'C', 4.5, false));
        assert_eq!(found.disk, Some(Disk { count: 3, gib: Some(10), kind: Some('s') }));
        assert_eq!(parse("SCS-8V-32-n").unwrap().disk, Some(Disk { count: 1, gib: None, kind: Some('n') }));
        assert!(parse("SCS-1L:1:5").unwrap().old);
    }
}
