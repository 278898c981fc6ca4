// Returns a line for everything of a page that is not where it belongs (look.py).
const lines = [], root = document.documentElement;
const name = element => element.tagName.toLowerCase() + (element.className?.baseVal ?? element.className ?? '');
const said = element => `${name(element)} "${element.textContent.trim().slice(0, 50)}"`;
const scrolls = element => { for (; element && element !== root; element = element.parentElement)
    if (getComputedStyle(element).overflowX !== 'visible') return true; return false; };
if (root.scrollWidth > root.clientWidth) lines.push(`the page is ${root.scrollWidth} wide, the window ${root.clientWidth}`);
for (const element of document.querySelectorAll('article *')) {
  if (element.closest('svg') || !element.getClientRects().length) continue;
  const text = [...element.childNodes].filter(node => node.nodeType === 3 && node.textContent.trim());
  if (!text.length || scrolls(element)) continue;
  const range = document.createRange();
  for (const node of text) { range.selectNodeContents(node);
    for (const box of range.getClientRects()) if (box.right > root.clientWidth + 1 || box.left < -1) {
      lines.push(`cut off: ${said(element)}`); break; } }
  if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display === 'block')
    lines.push(`sticks out of its box: ${said(element)}`);
}
for (const svg of document.querySelectorAll('article svg')) {
  const box = svg.getBoundingClientRect();
  if (!box.width) continue;
  for (const text of svg.querySelectorAll('text')) { const own = text.getBoundingClientRect();
    if (own.right > box.right + 1 || own.left < box.left - 1 || own.bottom > box.bottom + 1 || own.top < box.top - 1)
      lines.push(`sticks out of its drawing: ${said(text)}`); }
}
return lines;
