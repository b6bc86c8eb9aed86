//! UTF-8 checked as it arrives: the valid part of a prefix, told from a sequence that is only cut short.

/// Whether all of `bytes` is UTF-8.
pub(crate) fn is_valid(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

/// How many bytes from the start are whole characters, if what follows them (at most 3 bytes) can still become
/// one; `None` if no continuation makes `bytes` valid.
pub(crate) fn valid_prefix(bytes: &[u8]) -> Option<usize> {
    match simdutf8::compat::from_utf8(bytes) {
        Ok(_) => Some(bytes.len()),
        Err(error) if error.error_len().is_none() => Some(error.valid_up_to()),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_sequence_is_not_yet_an_error() {
        assert_eq!(valid_prefix("aé".as_bytes()), Some(3));
        assert_eq!(valid_prefix(&"a😀".as_bytes()[..4]), Some(1));
    }

    #[test]
    fn what_no_continuation_can_mend_fails_at_once() {
        assert_eq!(valid_prefix(&[0xc0]), None, "overlong");
        assert_eq!(valid_prefix(&[0xed, 0xa0]), None, "surrogate");
        assert_eq!(valid_prefix(&[0xf4, 0x90]), None, "above U+10FFFF");
    }
}
