# Flattens a JSON document: one line per scalar, "path<TAB>value", members joined by "/", newlines in values as \n.
# Escapes are decoded as far as metadata uses them; \uXXXX below 128 becomes its character, others "?".
function space() { while (substr(s, p, 1) ~ /[ \t\r\n]/) p++ }
function text(   out, c, n) {
  p++
  while (p <= length(s)) {
    c = substr(s, p, 1)
    if (c == "\"") { p++; return out }
    if (c == "\\") {
      p++; c = substr(s, p, 1)
      if (c == "n") c = "\\n"
      else if (c == "t") c = " "
      else if (c == "r" || c == "b" || c == "f") c = ""
      else if (c == "u") {
        n = hex(substr(s, p + 1, 4)); p += 4
        c = n == 10 ? "\\n" : (n >= 32 && n < 127) ? sprintf("%c", n) : "?"
      }
    }
    out = out c; p++
  }
  return out
}
function hex(h,   i, n) {
  for (i = 1; i <= length(h); i++) n = n * 16 + index("0123456789abcdef", tolower(substr(h, i, 1))) - 1
  return n
}
function value(path,   c, key, i, v) {
  space(); c = substr(s, p, 1)
  if (c == "{") {
    p++; space()
    if (substr(s, p, 1) == "}") { p++; return }
    while (p <= length(s)) {
      space(); key = text(); space(); p++
      value(path == "" ? key : path "/" key); space()
      c = substr(s, p, 1); p++
      if (c != ",") return
    }
  } else if (c == "[") {
    p++; space()
    if (substr(s, p, 1) == "]") { p++; return }
    for (i = 0; p <= length(s); i++) {
      value(path "/" i); space()
      c = substr(s, p, 1); p++
      if (c != ",") return
    }
  } else if (c == "\"") {
    print path "\t" text()
  } else {
    v = ""
    while (substr(s, p, 1) ~ /[-+.0-9a-zA-Z]/) { v = v substr(s, p, 1); p++ }
    if (v == "") p++
    print path "\t" v
  }
}
{ s = s $0 "\n" }
END { p = 1; value("") }
