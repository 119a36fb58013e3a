// Words of one language on a page of the other, also where only a screen reader finds them.

// In the page: `language` is what it should be in.
export async function foreign(language) {
  const load = async (name) => (await fetch(`words.${name}.json`)).json();
  const [own, other] = [await load(language), await load(language === "en" ? "zh" : "en")];
  const strange = Object.keys(other).filter((key) => other[key] !== own[key]).map((key) => other[key]);
  // Long enough that they are no name and no number with its unit.
  const letters = (text, least) => (text.match(language === "en" ? /\p{Script=Han}/gu : /[A-Za-z]/g) ?? []).length >= least;
  const whole = new Set(strange.filter((word) => letters(word, 2)));
  const parts = strange.flatMap((word) => word.split(/\{\w+\}|`/)).map((part) => part.trim()).filter((part) => letters(part, language === "en" ? 3 : 8));
  const pattern = (word) => new RegExp(`^${word.split(/\{\w+\}/).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join(".+?")}$`);
  const patterns = strange.filter((word) => word.includes("{") && letters(word.replace(/\{\w+\}/g, ""), 2)).map(pattern);
  const found = new Set();
  const judge = (text) => {
    const said = text.trim();
    if (whole.has(said) || parts.some((part) => said.includes(part)) || patterns.some((p) => p.test(said))) found.add(said);
  };
  // Names of languages stand in their own, and what a program said, as it said it.
  const quoted = "[lang]:not(html), code, .mono, noscript, script";
  judge(document.title);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.data.trim() && !node.parentElement.closest(quoted)) judge(node.data);
  }
  for (const name of ["aria-label", "aria-valuetext", "data-label", "title", "placeholder", "alt"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) judge(element.getAttribute(name));
  }
  return [...found];
}
