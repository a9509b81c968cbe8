//! How a file or object is compressed, as the end of its name tells: the one table of it.
//!
//! In: a name. Out: a [`Packing`], and the name of what is inside. Pure; who unpacks names the formats' libraries.

/// How something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// `.gz`
    Gzip,
    /// `.zst`
    Zstd,
}

impl Packing {
    /// As `name` tells, and the name that it has unpacked.
    pub fn split(name: &str) -> (&str, Self) {
        let Some((inside, extension)) = name.rsplit_once('.') else { return (name, Self::Plain) };
        match extension.to_ascii_lowercase().as_str() {
            "gz" => (inside, Self::Gzip),
            "zst" => (inside, Self::Zstd),
            _ => (name, Self::Plain),
        }
    }

    /// As `name` tells.
    pub fn of(name: &str) -> Self {
        Self::split(name).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_name_tells_how_it_is_compressed() {
        for (name, inside, packing) in [
            ("texts.jsonl", "texts.jsonl", Packing::Plain),
            ("texts.jsonl.gz", "texts.jsonl", Packing::Gzip),
            ("TEXTS.JSONL.GZ", "TEXTS.JSONL", Packing::Gzip),
            ("a/texts.zst", "a/texts", Packing::Zstd),
            ("gz", "gz", Packing::Plain),
            ("texts.gz.jsonl", "texts.gz.jsonl", Packing::Plain),
        ] {
            assert_eq!(Packing::split(name), (inside, packing), "{name}");
        }
    }
}
