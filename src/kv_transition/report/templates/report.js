"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...content) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...content);
    return element;
  };
  document.documentElement.classList.add("js");

  /* Tables: a click on a header sorts up, the next down, the third gives the order of the report back. */
  const NUMBER = /^([≤<>≥]?)\s*([+\-−]?)(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)(e[+\-]?\d+)?(?=$|[\s%°†‡[(–])/i;
  const UNITS = { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };
  const BESIDE = { "≤": -1, "<": -1, "≥": 1, ">": 1, "": 0 };
  const collator = new Intl.Collator("en", { numeric: true });

  /* What a cell sorts by: numbers before words, dashes and empty cells always last. */
  const keyOf = (cell) => {
    const text = cell.textContent.trim().replace(/\s+/g, " ");
    if (/^[–—-]?$/.test(text)) return { rank: 2 };
    const match = NUMBER.exec(text);
    if (!match) return { rank: 1, text };
    const unit = text.slice(match[0].length).trimStart().split(/[^A-Za-z]/, 1)[0];
    const size = Number(match[3].replaceAll(",", "") + (match[4] || "")) * (UNITS[unit] ?? 1);
    return { rank: 0, value: match[2] && match[2] !== "+" ? -size : size, beside: BESIDE[match[1]], text };
  };
  const compare = (a, b, sign) => {
    if (a.rank !== b.rank) return a.rank === 2 || b.rank === 2 ? a.rank - b.rank : sign * (a.rank - b.rank);
    if (a.rank === 0) return sign * (a.value - b.value || a.beside - b.beside);
    return a.rank === 1 ? sign * collator.compare(a.text, b.text) : 0;
  };
  const sortable = (table) => {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 2 || table.closest(".card")) return;
    const original = [...body.rows];
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      if (!header.textContent.trim()) return;
      const button = make("button", { type: "button", title: "Sort" }, ...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const before = header.getAttribute("aria-sort");
        const next = { ascending: "descending", descending: null }[before];
        const order = next === undefined ? "ascending" : next;
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        if (order) header.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        const keyed = original.map((row) => [keyOf(row.cells[column]), row]);
        const rows = order ? keyed.sort(([a], [b]) => compare(a, b, sign)).map(([, row]) => row) : original;
        body.append(...rows);
      });
    });
  };
  all(".table-box > table").forEach(sortable);

  /* Figures: enlarged in a dialog, and the SVG that the page shows as a download. */
  const viewer = document.getElementById("viewer");
  let opener = null;
  const enlarge = (image, button) => {
    opener = button;
    const close = make("button", { type: "button", className: "close" }, "Close");
    const large = make("img", { src: image.src, alt: image.alt });
    large.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    viewer.replaceChildren(close, make("div", { className: "scroll" }, large));
    viewer.setAttribute("aria-label", image.alt);
    viewer.showModal();
  };
  viewer.addEventListener("click", (event) => {
    if (event.target.closest(".close, .scroll") || event.target === viewer) viewer.close();
  });
  viewer.addEventListener("close", () => {
    viewer.replaceChildren();
    opener?.focus();
  });
  all("figure").forEach((figure) => {
    const image = figure.querySelector(".plate img");
    const button = make("button", { type: "button", title: "Enlarge" });
    button.setAttribute("aria-label", `Enlarge: ${image.alt}`);
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => enlarge(image, button));
    const own = figure.querySelector(".downloads .own");
    own.href = image.src;
    own.hidden = false;
  });

  /* The first screen shows the first figure, small, with a link to where it stands. */
  const first = document.querySelector("main figure");
  if (first) {
    const heading = first.previousElementSibling;
    const target = heading?.id ? heading : first.closest("section").querySelector("h2");
    const small = make("img", { src: first.querySelector("img").src, alt: "" });
    const link = make("a", { className: "glance", href: `#${target.id}` }, small, target.textContent);
    document.querySelector("main > header").append(link);
  }

  /* Code: a button that copies it. */
  all(".code").forEach((box) => {
    const code = box.querySelector("code");
    const button = make("button", { type: "button", className: "copy" }, "Copy");
    button.setAttribute("aria-live", "polite");
    box.append(button);
    button.addEventListener("click", async () => {
      const text = code.textContent.replace(/\n$/, "");
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  });

  /* Contents: always open at the side, closed after a choice on a phone, and they follow the reader. */
  const contents = document.querySelector("#contents details");
  const wide = matchMedia("(min-width: 64rem)");
  const fit = () => { contents.open = wide.matches; };
  wide.addEventListener("change", fit);
  fit();
  contents.addEventListener("click", (event) => {
    if (event.target.closest("a") && !wide.matches) contents.open = false;
  });
  const headingOf = (entry) => document.getElementById(decodeURIComponent(entry.querySelector("a").hash.slice(1)));
  const entries = all("#contents details > ol > li");
  const headings = entries.map(headingOf);
  const follow = () => {
    const passed = headings.filter((heading) => heading.getBoundingClientRect().top < innerHeight / 3).length;
    entries.forEach((entry, index) => {
      const here = index === Math.max(passed - 1, 0);
      entry.classList.toggle("current", here);
      entry.querySelector("a").ariaCurrent = here ? "true" : null;
    });
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follow(); });
  }, { passive: true });
  follow();

  /* Folded tables: opened for print, and where a link or a search leads into them. */
  const folded = [];
  addEventListener("beforeprint", () => all(".fold:not([open])").forEach((fold) => { fold.open = true; folded.push(fold); }));
  addEventListener("afterprint", () => folded.splice(0).forEach((fold) => { fold.open = false; }));
})();
