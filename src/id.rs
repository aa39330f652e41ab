//! Identifiers of ops and traces, and the two headers that carry them between processes.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
    num::{NonZeroU64, NonZeroU128},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Name of the header that carries an op's trace and id to the process that serves it.
pub const HEADER: &str = "inflight-op";

/// Name of the W3C Trace Context header.
pub const TRACEPARENT: &str = "traceparent";

/// Names one op: a 64-bit span id, shown as 16 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(NonZeroU64);

/// Names one trace: 128 bits, shown as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(NonZeroU128);

/// The text was not the id or header it should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseError(());

/// What belongs to ops of this process, by their ids.
pub(crate) type IdMap<T> = HashMap<OpId, T, BuildHasherDefault<IdHasher>>;

/// Ids made here are mixed already: hashing them again would cost and give nothing.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

/// The value of an [`HEADER`] header: `<trace>-<span>`, both in lower-case hex.
///
/// ```
/// use inflight::id::Context;
///
/// let text = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
/// let context: Context = text.parse()?;
/// assert_eq!(context.to_string(), text);
/// # Ok::<(), inflight::id::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace the op belongs to.
    pub trace: TraceId,
    /// The op itself.
    pub op: OpId,
}

/// The value of a W3C `traceparent` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace and the span that is the parent.
    pub context: Context,
    /// The trace flags as they came; bit 0 is `sampled`.
    pub flags: u8,
}

impl OpId {
    /// Makes an id of a number; zero is no id.
    #[must_use]
    pub fn new(value: u64) -> Option<Self> {
        NonZeroU64::new(value).map(Self)
    }

    /// Returns the id as a number.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0.get()
    }

    // Splitmix64's finaliser is a bijection, so distinct counters give distinct ids.
    pub(crate) fn mixed(value: u64) -> Self {
        let value = mix(value);
        Self(NonZeroU64::new(value).unwrap_or(NonZeroU64::MIN))
    }
}

impl TraceId {
    /// Makes an id of a number; zero is no id.
    #[must_use]
    pub fn new(value: u128) -> Option<Self> {
        NonZeroU128::new(value).map(Self)
    }

    /// Returns the id as a number.
    #[must_use]
    pub fn value(self) -> u128 {
        self.0.get()
    }

    fn pieces(self) -> [Piece; 2] {
        let value = self.value();
        [
            Piece::Hex((value >> 64) as u64, 16),
            Piece::Hex(value as u64, 16),
        ]
    }

    pub(crate) fn mixed(high: u64, low: u64) -> Self {
        let value = u128::from(mix(high)) << 64 | u128::from(mix(low));
        Self(NonZeroU128::new(value).unwrap_or(NonZeroU128::MIN))
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Digits::of([Piece::Hex(self.value(), 16)]).as_str())
    }
}

impl fmt::Debug for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OpId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        hex::<16>(text)
            .and_then(|value| u64::try_from(value).ok())
            .and_then(Self::new)
            .ok_or(ParseError(()))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Digits::of(self.pieces()).as_str())
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TraceId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        hex::<32>(text).and_then(Self::new).ok_or(ParseError(()))
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.digits().as_str())
    }
}

impl FromStr for Context {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (trace, op) = text.split_once('-').ok_or(ParseError(()))?;
        Ok(Self {
            trace: trace.parse()?,
            op: op.parse()?,
        })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.digits().as_str())
    }
}

impl FromStr for TraceParent {
    type Err = ParseError;

    // W3C Trace Context, 2.2: version ff is invalid, version 00 has exactly 55 characters, and of a
    // later version the first 55 are read if nothing or a dash follows.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let head = text.get(..55).ok_or(ParseError(()))?;
        let rest = &text[55..];
        let mut parts = head.splitn(4, '-');
        let mut part = || parts.next().ok_or(ParseError(()));
        let (version, trace, op, flags) = (part()?, part()?, part()?, part()?);
        let version = hex::<2>(version).ok_or(ParseError(()))?;
        let fits = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        if !fits {
            return Err(ParseError(()));
        }
        let flags = hex::<2>(flags).and_then(|flags| u8::try_from(flags).ok());
        Ok(Self {
            context: Context {
                trace: trace.parse()?,
                op: op.parse()?,
            },
            flags: flags.ok_or(ParseError(()))?,
        })
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an id in lower-case hex")
    }
}

impl std::error::Error for ParseError {}

impl Serialize for OpId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OpId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

impl Context {
    /// The text of it.
    pub(crate) fn digits(&self) -> Digits {
        let [high, low] = self.trace.pieces();
        let op = Piece::Hex(self.op.value(), 16);
        Digits::of([high, low, Piece::Dash, op])
    }
}

impl TraceParent {
    /// The text of it.
    pub(crate) fn digits(&self) -> Digits {
        let [high, low] = self.context.trace.pieces();
        let (version, flags) = (Piece::Hex(0, 2), Piece::Hex(self.flags.into(), 2));
        let op = Piece::Hex(self.context.op.value(), 16);
        let dash = Piece::Dash;
        Digits::of([version, dash, high, low, dash, op, dash, flags])
    }
}

/// An id or a header as text. Each call carries one, and a formatter took 1,000 instructions for it, a sixth of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Digits {
    bytes: [u8; 55],
    length: usize,
}

#[derive(Clone, Copy)]
enum Piece {
    /// A number, and its digits.
    Hex(u64, usize),
    Dash,
}

impl Digits {
    fn of<const N: usize>(pieces: [Piece; N]) -> Self {
        let mut out = Self {
            bytes: [b'-'; 55],
            length: 0,
        };
        for piece in pieces {
            match piece {
                Piece::Dash => out.length += 1,
                Piece::Hex(value, digits) => {
                    let end = out.length + digits;
                    let mut left = value;
                    for place in out.bytes[out.length..end].iter_mut().rev() {
                        *place = b"0123456789abcdef"[(left & 15) as usize];
                        left >>= 4;
                    }
                    out.length = end;
                }
            }
        }
        out
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

fn hex<const DIGITS: usize>(text: &str) -> Option<u128> {
    if text.len() != DIGITS {
        return None;
    }
    let mut halves = [0_u64; 2];
    for (at, byte) in text.bytes().enumerate() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        let half = &mut halves[usize::from(at + 16 >= DIGITS)];
        *half = *half << 4 | u64::from(digit);
    }
    Some(u128::from(halves[0]) << 64 | u128::from(halves[1]))
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::{Context, OpId, TraceParent};

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn headers_round_trip() {
        let op = format!("{TRACE}-{SPAN}");
        let parent = format!("00-{TRACE}-{SPAN}-01");

        assert_eq!(op.parse::<Context>().unwrap().to_string(), op);
        assert_eq!(parent.parse::<TraceParent>().unwrap().to_string(), parent);
    }

    #[test]
    fn hostile_headers_are_refused() {
        let zeros = "0".repeat(16);
        for text in [
            "",
            "-",
            SPAN,
            &format!("{TRACE}-"),
            &format!("{TRACE}-{zeros}"),
            &format!("{}-{SPAN}", "0".repeat(32)),
            &format!("{TRACE}-{SPAN}-01"),
            &format!("{}-{SPAN}", TRACE.to_uppercase()),
            &format!("+{}-{SPAN}", &TRACE[1..]),
            &format!("{TRACE}-{SPAN}\n"),
            &"a".repeat(100_000),
        ] {
            assert!(text.parse::<Context>().is_err(), "{text:.80}");
        }
        for text in [
            "",
            "00",
            &format!("00-{TRACE}-{SPAN}"),
            &format!("ff-{TRACE}-{SPAN}-01"),
            &format!("00-{TRACE}-{SPAN}-01-x"),
            &format!("00-{TRACE}-{zeros}-01"),
            &format!("00-{TRACE}-{SPAN}-0G"),
            &format!("cc-{TRACE}-{SPAN}-01x"),
            &format!("00-{TRACE}-{}\u{e9}-01", &SPAN[2..]),
            &"\u{e9}".repeat(60),
        ] {
            assert!(text.parse::<TraceParent>().is_err(), "{text:.80}");
        }
    }

    #[test]
    fn a_later_traceparent_version_is_read_as_far_as_it_is_known() {
        let text = format!("cc-{TRACE}-{SPAN}-01-what-comes-later");

        assert_eq!(text.parse::<TraceParent>().unwrap().flags, 1);
    }

    #[test]
    fn mixed_ids_of_neighbours_are_far_apart() {
        let (one, two) = (OpId::mixed(1), OpId::mixed(2));

        assert!((one.value() ^ two.value()).count_ones() > 8);
    }
}
