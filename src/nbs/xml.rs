//! The XML bodies: one element with attributes, and below it a list of elements with attributes.
//! Read by a pull parser that knows no entities but XML's own five, so that nothing expands.
//!
//! The source of the protocol writes numbers without quotes (`blkSize=%lu`): they are taken both
//! ways and written with quotes.

use quick_xml::escape::escape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use std::fmt::Write;

/// Longest body that is looked at: a list of some ten thousand objects.
const MAX_XML_BYTES: usize = 1 << 20;
/// Most elements of a list.
const MAX_ITEMS: usize = 16 << 10;
/// Most attributes of an element.
const MAX_ATTRIBUTES: usize = 32;

/// An element: its name, attributes, text, and the elements below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// Its name.
    pub name: String,
    attributes: Vec<(String, String)>,
    /// Text directly in it.
    pub text: String,
    /// Below it.
    pub items: Vec<Element>,
}

impl Element {
    /// One without attributes.
    pub fn new(name: &str) -> Element {
        Element { name: name.to_owned(), ..Element::default() }
    }

    /// With a further attribute.
    pub fn with(mut self, key: &str, value: impl ToString) -> Element {
        self.attributes.push((key.to_owned(), value.to_string()));
        self
    }

    /// An attribute.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(own, _)| own == key);
        found.map(|(_, value)| value.as_str())
    }

    /// An attribute that is a decimal number.
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.trim().parse().ok()
    }

    /// An attribute that is 1 or 0.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.trim() == "1")
    }

    /// As it is sent.
    pub fn to_xml(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        let _ = write!(out, "<{}", self.name);
        for (key, value) in &self.attributes {
            let _ = write!(out, " {key}=\"{}\"", escape(value.as_str()));
        }
        if self.items.is_empty() && self.text.is_empty() {
            out.push_str("/>");
            return;
        }
        let _ = write!(out, ">{}", escape(self.text.as_str()));
        self.items.iter().for_each(|item| item.write(out));
        let _ = write!(out, "</{}>", self.name);
    }

    fn of(start: &BytesStart<'_>) -> Option<Element> {
        let name = word(start.name().as_ref())?;
        let mut element = Element { name, ..Element::default() };
        for attribute in start.html_attributes() {
            let attribute = attribute.ok()?;
            if element.attributes.len() >= MAX_ATTRIBUTES {
                return None;
            }
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).ok()?.into_owned();
            element.attributes.push((word(attribute.key.as_ref())?, value));
        }
        Some(element)
    }
}

/// A name of an element or an attribute, as this protocol has them.
fn word(bytes: &[u8]) -> Option<String> {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let found = std::str::from_utf8(bytes).ok().filter(|_| bytes.iter().all(good));
    found.filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Reads a body; `None` where it is no XML, or more than the protocol has.
pub fn parse(body: &[u8]) -> Option<Element> {
    if body.len() > MAX_XML_BYTES {
        return None;
    }
    let mut reader = Reader::from_str(std::str::from_utf8(body).ok()?);
    let mut root = None;
    let mut depth = 0;
    loop {
        match reader.read_event().ok()? {
            Event::Eof => return root.filter(|_| depth == 0),
            Event::Start(start) => {
                add(&mut root, Element::of(&start)?, depth)?;
                depth += 1;
            }
            Event::Empty(start) => add(&mut root, Element::of(&start)?, depth)?,
            Event::End(_) => depth -= 1,
            Event::Text(found) => say(&mut root, depth, &found.xml10_content().ok()?)?,
            Event::CData(found) => say(&mut root, depth, &found.decode().ok()?)?,
            Event::GeneralRef(found) => {
                let whole = format!("&{};", found.decode().ok()?);
                say(&mut root, depth, &quick_xml::escape::unescape(&whole).ok()?)?;
            }
            Event::Comment(_) | Event::Decl(_) => {}
            Event::DocType(_) | Event::PI(_) => return None,
        }
    }
}

fn add(root: &mut Option<Element>, element: Element, depth: usize) -> Option<()> {
    match (root, depth) {
        (root @ None, 0) => *root = Some(element),
        (Some(root), 1) if root.items.len() < MAX_ITEMS => root.items.push(element),
        _ => return None,
    }
    Some(())
}

fn say(root: &mut Option<Element>, depth: usize, text: &str) -> Option<()> {
    match (root, depth) {
        (_, 0) => text.trim().is_empty().then_some(()),
        (Some(root), 1) => {
            root.text.push_str(text);
            Some(())
        }
        (Some(root), _) => {
            root.items.last_mut()?.text.push_str(text);
            Some(())
        }
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut list = Element::new("nbsLstRply");
        list.items = vec![
            Element::new("nbs").with("name", "a\"<&>'b").with("blkSize", 8192),
            Element::new("nbs").with("name", "").with("rw", 1),
        ];
        let parsed = parse(list.to_xml().as_bytes()).unwrap();
        assert_eq!(parsed, list);
        assert_eq!(parsed.items[0].number::<u32>("blkSize"), Some(8192));
        assert!(parsed.items[1].flag("rw") && !parsed.flag("rw"));
        let message = Element { text: "a < b & c".to_owned(), ..Element::new("nbsMsg") };
        assert_eq!(parse(message.to_xml().as_bytes()), Some(message));
    }

    #[test]
    fn as_the_source_writes_it() {
        let text = b"<nbsLstRply>\n<nbs name=\"vm1\" blkSize=8192 numBlks=10 rw=1 tws=0 />\n\
                     </nbsLstRply>";
        let list = parse(text).unwrap();
        assert_eq!(list.items[0].get("name"), Some("vm1"));
        assert_eq!(list.items[0].number::<u64>("numBlks"), Some(10));
        let challenge = parse(b"<nbsAuthARply CHAP_A=7 CHAP_I=1f CHAP_C=\"00ff\" />").unwrap();
        assert_eq!(challenge.get("CHAP_I"), Some("1f"));
    }

    #[test]
    fn what_is_no_body_is_refused() {
        for text in [
            "",
            "x",
            "<a",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<a><b><c/></b></a>",
            "<!DOCTYPE a [<!ENTITY x \"y\">]><a/>",
            "<a b=\"&x;\"/>",
            "<a>&x;</a>",
            "<?pi?><a/>",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(&[0xff, 0xfe]), None);
        let many = format!("<a>{}</a>", "<b/>".repeat(MAX_ITEMS + 1));
        assert_eq!(parse(many.as_bytes()), None);
        let wide: String = (0..=MAX_ATTRIBUTES).map(|n| format!(" a{n}=\"1\"")).collect();
        assert_eq!(parse(format!("<a{wide}/>").as_bytes()), None);
    }
}
