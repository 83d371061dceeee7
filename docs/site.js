/* Tables that scroll sideways can be reached and scrolled with the keyboard. */
document$.subscribe(() => requestAnimationFrame(() => {
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap")) wide.tabIndex = 0;
}));
