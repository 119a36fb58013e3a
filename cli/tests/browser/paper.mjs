// Whether texts can be read, on the screen and on paper, of which the media are emulated: there nothing is gone but what is of
// no use, and all is dark on light.

// In the page: texts without contrast, and on paper those that are not printed or not dark on light.
export function unreadable(paper) {
  const useless = !paper ? ".sr, noscript" : "nav, .tools, .skip, .sr, form, .switch, hutong-chart details:not([open]), details:not([open]) > :not(summary), noscript";
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const over = (colour, [r, g, b]) => {
    const key = `${colour} ${r} ${g} ${b}`;
    if (!known.has(key)) known.set(key, mixed(colour, [r, g, b]));
    return known.get(key);
  };
  const mixed = (colour, [r, g, b]) => {
    canvas.fillStyle = `rgb(${r} ${g} ${b})`;
    canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const grounds = new Map();
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    if (!grounds.has(element)) grounds.set(element, over(getComputedStyle(element).backgroundColor, behind(element.parentElement)));
    return grounds.get(element);
  };
  const found = new Set();
  let letters = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest(useless)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const { width, height } = range.getBoundingClientRect();
    if (!parent.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || width < 1 || height < 1) {
      if (paper) found.add(`not printed: ${node.data.trim()}`);
      continue;
    }
    letters += node.data.trim().length;
    const back = behind(parent);
    const [ink, ground] = [luminance(over(getComputedStyle(parent).color, back)), luminance(back)];
    const contrast = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
    if (contrast < 4.5) found.add(`contrast ${contrast.toFixed(2)}: ${node.data.trim()}: ${getComputedStyle(parent).color} on ${back}`);
    if (paper && (ground < 0.7 || ink > ground)) found.add(`not dark on light: ${node.data.trim()}: ${getComputedStyle(parent).color} on ${back}`);
  }
  if (!paper) return [...found];
  for (const element of document.querySelectorAll("figure, canvas, table, .bar")) {
    const { width, height } = element.getBoundingClientRect();
    if (!element.closest(useless) && (width < 1 || height < 1)) found.add(`not printed: ${element.outerHTML.slice(0, 80)}`);
  }
  if (!letters) found.add("not printed: anything");
  return [...found];
}
