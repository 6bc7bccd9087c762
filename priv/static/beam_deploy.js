// After a hot upgrade with changed stylesheets an open page takes the new ones without being loaded again; the old one goes
// once its successor is there. See the guide "Hot upgrades".
window.addEventListener("phx:beam_deploy:stylesheets", ({ detail: { stylesheets } }) => {
  for (const link of document.querySelectorAll("link[rel~=stylesheet][href]")) {
    const url = new URL(link.href);
    const next = stylesheets[url.pathname.replace(/-[0-9a-f]{32}(?=\.[^./]*$)/, "")];
    if (!next || link.beamDeployReplaced) continue;

    // On the host that the page had it from.
    const target = new URL(next, url);
    if (target.href === url.href) continue;

    const successor = link.cloneNode();
    link.beamDeployReplaced = true;
    successor.href = target.href;
    successor.addEventListener("load", () => link.remove(), { once: true });
    successor.addEventListener("error", () => {
      successor.remove();
      link.beamDeployReplaced = false;
    }, { once: true });
    link.after(successor);
  }
});
