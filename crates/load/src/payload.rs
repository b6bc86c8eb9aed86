//! What a measured message says: who sent it, its number, when. And whether one that came back is whole.
//!
//! A payload is a stamp of 32 bytes and a filler that is known beforehand. Each byte of the stamp is one of the 16
//! characters `@` to `O` and holds four bits, so the same payload is valid as text, as binary and inside a JSON
//! string, and is read in a few instructions.

/// Length of the stamp, and so the least length of a payload, bytes.
pub const STAMP_BYTES: usize = 32;

/// Longest payload, bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sent before the measurement, to see that everybody is reached. Not checked.
    Probe,
    /// Counted, timed and checked.
    Data,
}

/// What stands in a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Tells this run's messages from those of another loader at the same server.
    pub run: u16,
    /// Which sender, dense from 0.
    pub sender: u16,
    /// The sender's count of messages, from 1.
    pub sequence: u32,
    /// When it was sent, or was due to be sent, in ns since the loader's start; below 2^48 (78 hours).
    pub time_ns: u64,
    /// What it is for.
    pub kind: Kind,
}

/// A payload that is not one of this run's, or not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Writes and reads the payloads of a run, all of one length.
#[derive(Clone, Debug)]
pub struct Payloads {
    run: u16,
    filler: Vec<u8>,
}

/// The last byte of each stamp.
const MAGIC: u32 = 0x74;

impl Payloads {
    /// For run `run`, with payloads of `size` bytes (at least [`STAMP_BYTES`]).
    pub fn new(run: u16, size: usize) -> Payloads {
        assert!(
            (STAMP_BYTES..=PAYLOAD_BYTES_MAX).contains(&size),
            "the plan checks the size"
        );
        let filler = (b'a'..=b'z').cycle().take(size - STAMP_BYTES).collect();
        Payloads { run, filler }
    }

    /// Appends one payload to `buffer`. The stamp's `run` is the one given to [`Payloads::new`].
    pub fn write(&self, buffer: &mut Vec<u8>, sender: u16, sequence: u32, time_ns: u64, kind: Kind) {
        let kind = match kind {
            Kind::Probe => 0,
            Kind::Data => 1,
        };
        let words = [
            u32::from(self.run) << 16 | u32::from(sender),
            sequence,
            time_ns as u32,
            ((time_ns >> 32) as u32) << 16 | kind << 8 | MAGIC,
        ];
        for word in words {
            buffer.extend_from_slice(&spread(word));
        }
        buffer.extend_from_slice(&self.filler);
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// It has another length, another run's number, or differs from what was sent in any byte.
    pub fn read(&self, payload: &[u8]) -> Result<Stamp, Malformed> {
        let (words, []) = payload.get(..STAMP_BYTES).ok_or(Malformed)?.as_chunks::<8>() else {
            return Err(Malformed);
        };
        if payload[STAMP_BYTES..] != self.filler[..] {
            return Err(Malformed);
        }
        let origin = gather(words[0])?;
        let sequence = gather(words[1])?;
        let time_low = gather(words[2])?;
        let rest = gather(words[3])?;
        let kind = match rest >> 8 & 0xFF {
            0 => Kind::Probe,
            1 => Kind::Data,
            _ => return Err(Malformed),
        };
        if rest & 0xFF != MAGIC || origin >> 16 != u32::from(self.run) {
            return Err(Malformed);
        }
        Ok(Stamp {
            run: self.run,
            sender: origin as u16,
            sequence,
            time_ns: u64::from(rest >> 16) << 32 | u64::from(time_low),
            kind,
        })
    }
}

const HIGH_NIBBLES: u64 = 0xF0F0_F0F0_F0F0_F0F0;
const MARKS: u64 = 0x4040_4040_4040_4040;

/// Eight characters, four bits in each.
fn spread(word: u32) -> [u8; 8] {
    let mut wide = u64::from(word);
    wide = (wide | wide << 16) & 0x0000_FFFF_0000_FFFF;
    wide = (wide | wide << 8) & 0x00FF_00FF_00FF_00FF;
    wide = (wide | wide << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    (wide | MARKS).to_le_bytes()
}

/// The inverse of [`spread`].
fn gather(characters: [u8; 8]) -> Result<u32, Malformed> {
    let mut wide = u64::from_le_bytes(characters);
    if wide & HIGH_NIBBLES != MARKS {
        return Err(Malformed);
    }
    wide ^= MARKS;
    wide = (wide | wide >> 4) & 0x00FF_00FF_00FF_00FF;
    wide = (wide | wide >> 8) & 0x0000_FFFF_0000_FFFF;
    wide = (wide | wide >> 16) & 0x0000_0000_FFFF_FFFF;
    Ok(wide as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let payloads = Payloads::new(0xBEEF, 100);
        let mut buffer = Vec::new();
        payloads.write(&mut buffer, 65_000, u32::MAX, (1 << 48) - 1, Kind::Data);
        assert_eq!(buffer.len(), 100);
        let stamp = Stamp {
            run: 0xBEEF,
            sender: 65_000,
            sequence: u32::MAX,
            time_ns: (1 << 48) - 1,
            kind: Kind::Data,
        };
        assert_eq!(payloads.read(&buffer), Ok(stamp));
    }

    #[test]
    fn a_payload_is_text_that_json_does_not_escape() {
        let mut buffer = Vec::new();
        Payloads::new(0x0123, 64).write(&mut buffer, 0x4567, 0x89AB_CDEF, 0x1234_5678_9ABC, Kind::Probe);
        let text = String::from_utf8(buffer).unwrap();
        assert_eq!(serde_json::to_string(&text).unwrap(), format!("\"{text}\""));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let payloads = Payloads::new(7, 48);
        let mut buffer = Vec::new();
        payloads.write(&mut buffer, 1, 2, 3, Kind::Data);
        let whole = payloads.read(&buffer).unwrap();
        for index in 0..buffer.len() {
            let mut changed = buffer.clone();
            changed[index] ^= 0x80;
            assert_ne!(payloads.read(&changed), Ok(whole), "byte {index}");
        }
        assert_eq!(payloads.read(&buffer[..47]), Err(Malformed));
        assert_eq!(payloads.read(&[]), Err(Malformed));
        buffer.push(b'q');
        assert_eq!(payloads.read(&buffer), Err(Malformed));
    }

    #[test]
    fn another_runs_payload_is_refused() {
        let mut buffer = Vec::new();
        Payloads::new(1, 32).write(&mut buffer, 0, 1, 0, Kind::Data);
        assert_eq!(Payloads::new(2, 32).read(&buffer), Err(Malformed));
    }
}
