//! Things in a stream, taken one at a time: where they lie if they came whole, gathered if they came in pieces.

use super::CodecError;

/// Bytes of something partial at most: the largest payload that can be measured, and room for what is around it.
pub(super) const PARTIAL_BYTES_MAX: usize = millrace_protocol::frame::PAYLOAD_BYTES_MAX + (16 << 10);

/// The start of something whose rest has not come yet.
#[derive(Debug, Default)]
pub(super) struct Carry(Vec<u8>);

impl Carry {
    /// Gives what is not taken yet to `take`, which answers how many bytes the first thing there has, or `None` while
    /// it is not whole; until it is not.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<Option<usize>, CodecError>,
    ) -> Result<(), CodecError> {
        let mut drain = |mut rest: &[u8]| -> Result<usize, CodecError> {
            let all = rest.len();
            while !rest.is_empty() {
                let Some(used) = take(rest)? else { break };
                rest = &rest[used..];
            }
            Ok(all - rest.len())
        };
        if self.0.is_empty() {
            let used = drain(bytes)?;
            if used < bytes.len() {
                self.0 = bytes[used..].to_vec();
            }
        } else {
            self.0.extend_from_slice(bytes);
            let used = drain(&self.0)?;
            if used == self.0.len() {
                // Memory only for what is partial.
                self.0 = Vec::new();
            } else {
                self.0.drain(..used);
            }
        }
        if self.0.len() > PARTIAL_BYTES_MAX {
            return Err(CodecError::TooBig(PARTIAL_BYTES_MAX));
        }
        Ok(())
    }
}

/// The line that `rest` begins with, without its end, and its bytes with it.
pub(super) fn line(rest: &[u8]) -> Option<(&[u8], usize)> {
    let at = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&rest[..at], at + 2))
}

/// A number in decimal digits.
pub(super) fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_things_are_bounded() {
        let mut carry = Carry::default();
        let piece = vec![0; PARTIAL_BYTES_MAX / 2];
        let mut feed = || carry.feed(&piece, |_| Ok(None));
        assert_eq!((feed(), feed()), (Ok(()), Ok(())));
        assert_eq!(feed(), Err(CodecError::TooBig(PARTIAL_BYTES_MAX)));
    }
}
