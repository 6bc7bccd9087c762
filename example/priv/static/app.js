const token = document.querySelector("meta[name='csrf-token']").content;
const socket = new LiveView.LiveSocket("/live", Phoenix.Socket, {
  params: { _csrf_token: token },
  dom: {
    // What a reader has opened stays open when the page is brought up to date.
    onBeforeElUpdated(from, to) {
      if (from.tagName === "DETAILS") to.open = from.open;
    },
  },
});
socket.connect();
